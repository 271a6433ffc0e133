package spec

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const group = "kind: TargetGroup\nname: web\nregion: ap-northeast-2\nprotocol: HTTP\n"

func TestDiffSaysWhatDiffersFieldByField(t *testing.T) {
	balancer := "kind: LoadBalancer\nname: web\nregion: ap-northeast-2\n"
	zone := "kind: HostedZone\nname: example.com\nrecords:\n"
	record := func(name, value string) string {
		return fmt.Sprintf("  - {name: %s, type: A, values: [%s]}\n", name, value)
	}
	for _, c := range []struct {
		name, old, new string
		want           []string
	}{
		{"a port", balancer + "listeners: [{protocol: HTTP, port: 80, default: {forward: web}}]\n",
			balancer + "listeners: [{protocol: HTTP, port: 8080, default: {forward: web}}]\n",
			[]string{"listeners[0].port: 80 → 8080"}},
		{"comments, layout and order", group + "port: 80 # http\nhealthCheck: {path: /, interval: 10}\n",
			"# more\nport: 80\n" + group + "\nhealthCheck:\n  interval: 10s\n  path: \"/\"\n", nil},
		{"a default written out", group, group + "deregistrationDelay: 5m\nhealthCheck: {timeout: 6}\n", nil},
		{"a default given up", group + "healthCheck: {interval: 500s}\n", group, []string{"(unreadable)"}},
		{"a field back to its default", group + "healthCheck: {interval: 10}\n", group, []string{"healthCheck.interval: 10s → 30s"}},
		{"a field set, and one no more", group + "port: 80\n", group + "healthCheck: {port: 81}\n",
			[]string{"port: − 80", "healthCheck.port: + 81"}},
		{"a target more at the beginning", group + "targets: [{address: 10.0.0.1, port: 80}, {address: 10.0.0.2, port: 80}]\n",
			group + "targets: [{address: 10.0.0.3, port: 80}, {address: 10.0.0.1, port: 80}, {address: 10.0.0.2, port: 80}]\n",
			[]string{"targets[0]: + {address: 10.0.0.3, port: 80}"}},
		{"targets gone, come and moved", group + "port: 1\ntargets: [{address: 10.0.0.1}, {address: 10.0.0.2}, {address: 10.0.0.3}]\n",
			group + "port: 1\ntargets: [{address: 10.0.0.3}, {address: 10.0.0.4}, {address: 10.0.0.5}]\n",
			[]string{"targets[0]: − {address: 10.0.0.1, port: 1}", "targets[1]: − {address: 10.0.0.2, port: 1}",
				"targets[1]: + {address: 10.0.0.4, port: 1}", "targets[2]: + {address: 10.0.0.5, port: 1}"}},
		{"a record among others", zone + record("a", "192.0.2.1") + record("b", "192.0.2.2") + record("c", "192.0.2.3"),
			zone + record("x", "192.0.2.9") + record("a", "192.0.2.1") + record("b", "192.0.2.4") + record("c", "192.0.2.3"),
			[]string{"records[0]: + {name: x, type: A, ttl: 300s, values: [192.0.2.9]}",
				"records[2].values[0]: − 192.0.2.2", "records[2].values[0]: + 192.0.2.4"}},
		{"an alias for an address", zone + record("a", "192.0.2.1"), zone + "  - {name: a, type: A, alias: {distribution: www}}\n",
			[]string{"records[0].ttl: − 300s", "records[0].values: − [192.0.2.1]", "records[0].alias: + {distribution: www}"}},
		{"text with spaces", group + "healthCheck: {path: /a}\n", group + "healthCheck: {path: '/a, b'}\n",
			[]string{`healthCheck.path: /a → "/a, b"`}},
		{"a switch", "kind: HealthCheck\nname: a\ntype: TCP\nipAddress: 192.0.2.1\nport: 80\n",
			"kind: HealthCheck\nname: a\ntype: TCP\nipAddress: 192.0.2.1\nport: 80\ninverted: true\n",
			[]string{"inverted: false → true"}},
		{"a place", "kind: Region\nname: a\nlocation: {latitude: 0, longitude: 1}\n", "kind: Region\nname: a\nlocation: {latitude: 1.5, longitude: 1}\n",
			[]string{"location.latitude: 0 → 1.5"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			changes := Diff(mustSplit(t, c.old), mustSplit(t, c.new))
			if len(c.want) == 1 && c.want[0] == "(unreadable)" {
				if len(changes) != 1 || changes[0].Op != Updated || changes[0].Fields != nil {
					t.Errorf("got %v, want an update without fields", changes)
				}
				return
			}
			var got []string
			for _, change := range changes {
				got = append(got, change.Fields...)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("-want +got\n%s", diff)
			}
		})
	}
}

func TestDiffOrdersResourcesByWhatRefersToWhat(t *testing.T) {
	old := mustSplit(t, "kind: Alien\nname: a\n---\nkind: HostedZone\nname: a\n---\nkind: HostedZone\nname: b\n---\n"+group)
	new := mustSplit(t, "kind: HostedZone\nname: c\n---\nkind: Region\nname: z\n---\n"+group+"port: 80\n---\nkind: Alien\nname: a\nx: 1\n---\nkind: HostedZone\nname: a\n")
	var got []string
	for _, c := range Diff(old, new) {
		got = append(got, fmt.Sprintf("%s %s %s", c.Op, c, strings.Join(c.Fields, "; ")))
	}
	want := []string{
		"created Region/z ", "updated TargetGroup/web port: + 80", "deleted HostedZone/b ", "created HostedZone/c ", "updated Alien/a ",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestListsTooLongToAlignAreStillCompared(t *testing.T) {
	old, new := "kind: HostedZone\nname: a\nrecords:\n", "kind: HostedZone\nname: a\nrecords:\n"
	for i := range 1200 {
		old += fmt.Sprintf("- {name: a%d, type: A, values: [192.0.2.1]}\n", i)
		new += fmt.Sprintf("- {name: b%d, type: A, values: [192.0.2.1]}\n", i)
	}
	changes := Diff(mustSplit(t, old), mustSplit(t, new))
	if len(changes) != 1 || len(changes[0].Fields) != 1200 || changes[0].Fields[7] != "records[7].name: a7 → b7" {
		t.Errorf("got %d changes, %.200v", len(changes), changes)
	}
}
