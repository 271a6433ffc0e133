package spec

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

// What leads to an accelerator is refused whichever of the two comes last, and what is agreed already stands.
func TestLoopsAreRefusedWhicheverComesLast(t *testing.T) {
	const region = "kind: Region\nname: r\nlocation: {latitude: 1, longitude: 1}\n"
	accelerator := func(name, address, port, endpoint string) string {
		return "---\n{kind: Accelerator, name: " + name + ", ipAddresses: [" + address + "], listeners: [{protocol: TCP, portRanges: [{fromPort: " + port + "}], " +
			"endpointGroups: [{region: r, endpoints: [{" + endpoint + "}]}]}]}\n"
	}
	const group = "---\n{kind: TargetGroup, name: web, region: r, protocol: TCP, port: 7, targets: [{address: 192.0.2.8}]}\n"
	leads := group + accelerator("leads", "192.0.2.1", "7", "address: 192.0.2.9")
	for _, of := range []struct {
		name, base, put string
		want            string // nothing: it is taken
	}{
		{"a target is put", accelerator("there", "192.0.2.8", "7", "address: 10.0.0.1"), group,
			"new.yaml:2: TargetGroup web: targets[0]: 192.0.2.8:7 is accelerator there's own: its flows would come back without end"},
		{"an accelerator is put where a target stands", leads, accelerator("new", "192.0.2.8", "7", "address: 10.0.0.1"),
			"new.yaml:2: Accelerator new: ipAddresses[0]: 192.0.2.8:7 is where TargetGroup/web leads (targets[0]): its flows would come back without end"},
		{"an accelerator is put where an endpoint stands", leads, accelerator("new", "192.0.2.9", "7", "address: 10.0.0.1"),
			"new.yaml:2: Accelerator new: ipAddresses[0]: 192.0.2.9:7 is where Accelerator/leads leads (listeners[0].endpointGroups[0].endpoints[0].address): its flows would come back without end"},
		{"an accelerator is put on another port", leads, accelerator("new", "192.0.2.8", "8", "address: 10.0.0.1"), ""},
		{"an accelerator of what stands comes to listen there", leads + accelerator("new", "192.0.2.8", "8", "address: 10.0.0.1"), accelerator("new", "192.0.2.8", "7", "address: 10.0.0.1"),
			"new.yaml:2: Accelerator new: ipAddresses[0]: 192.0.2.8:7 is where TargetGroup/web leads (targets[0]): its flows would come back without end"},
		{"both change at once", leads + accelerator("new", "192.0.2.8", "8", "address: 10.0.0.1"),
			accelerator("new", "192.0.2.8", "7", "address: 10.0.0.1") + "---\n{kind: TargetGroup, name: web, region: r, protocol: TCP, port: 8, targets: [{address: 192.0.2.8}]}\n", ""},
	} {
		t.Run(of.name, func(t *testing.T) {
			base, err := Build(1, mustSplit(t, region+of.base), Options{})
			if err != nil {
				t.Fatal(err)
			}
			docs := mustSplit(t, of.put)
			for i := range docs {
				docs[i].File = "new.yaml"
			}
			got := ""
			if _, err := base.With(2, docs, nil, Options{}); err != nil {
				got = err.Error()
			}
			if diff := cmp.Diff(of.want, got); diff != "" {
				t.Errorf("-want +got\n%s", diff)
			}
			if _, err := base.With(2, docs, nil, Options{Stored: true}); err != nil {
				t.Errorf("what is agreed already: %v", err)
			}
		})
	}
}
