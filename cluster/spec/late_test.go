package spec

import (
	"strings"
	"testing"
)

// A change is judged by rules that came late only in what it edits.
func TestOldFaultsDoNotRefuseAChangeOfAnythingElse(t *testing.T) {
	const region = "kind: Region\nname: r\nlocation: {latitude: 1, longitude: 1}\n"
	const web = "---\n{kind: TargetGroup, name: web, region: r, protocol: HTTP, port: 80}\n"
	const zone = "---\nkind: HostedZone\nname: a.example\nrecords:\n  - {name: www, type: A, values: [192.0.2.1]}\n" +
		"transfer: {notify: [{address: 255.255.255.255}, {address: 'fe80::1'}]}\n"
	const group = `---
{kind: TargetGroup, name: old, region: r, protocol: UDP, port: 80, targets: [{address: 255.255.255.255}, {address: 192.0.2.7}]}
`
	const site = `---
{kind: Distribution, name: site, aliases: [www.a.example], origins: [{name: a, url: "http://0.0.0.0"}], defaultCacheBehavior: {targetOrigin: a}}
`
	const accelerator = `---
{kind: Accelerator, name: acc, ipAddresses: [198.51.100.1, "fe80::1"], listeners: [{protocol: TCP, portRanges: [{fromPort: 80}], endpointGroups: [{region: r, endpoints: [{targetGroup: web}, {address: 255.255.255.255}]}]}]}
`
	const rooms = `---
{kind: Accelerator, name: rooms, type: CUSTOM_ROUTING, ipAddresses: [198.51.100.2], listeners: [{protocol: TCP, portRanges: [{fromPort: 1000, toPort: 1063}], failoverScope: ALL, ` +
		`endpointGroups: [{region: r, healthCheckPort: 8080, healthCheckInterval: 10, thresholdCount: 2, destinationConfigurations: [{fromPort: 80}], endpoints: [{subnet: "fe80::/124"}]}]}]}
`
	const many = `---
{kind: Accelerator, name: many, ipAddresses: [10.0.0.1, 10.0.0.2, 10.0.0.3, 10.0.0.4, 10.0.0.5], listeners: [{protocol: TCP, portRanges: [{fromPort: 1, toPort: 4096}], endpointGroups: [{region: r, endpoints: [{address: 192.0.2.1}]}]}]}
`
	const loop = `---
{kind: TargetGroup, name: own, region: r, protocol: UDP, port: 7, targets: [{address: 192.0.2.8}]}
---
{kind: Accelerator, name: loop, ipAddresses: [192.0.2.8], listeners: [{protocol: UDP, portRanges: [{fromPort: 7}], endpointGroups: [{region: r, endpoints: [{targetGroup: own}, {address: 192.0.2.8}]}]}]}
`
	for _, of := range []struct {
		name, base, from, to string // what is put is base with one text in place of another
		want                 string // nothing: it is taken
	}{
		{"a zone's record", zone, "192.0.2.1", "192.0.2.2", ""},
		{"a zone's peers come in another order", zone, "{address: 255.255.255.255}, {address: 'fe80::1'}", "{address: 'fe80::1'}, {address: 192.0.2.3}, {address: 255.255.255.255}", ""},
		{"a zone's peer goes", zone, ", {address: 'fe80::1'}", "", ""},
		{"a zone's peer changes", zone, "fe80::1", "fe80::2", "transfer.notify[1].address: fe80::2 is not"},
		{"a zone is asked of what it told", zone, "records:\n  - {name: www, type: A, values: [192.0.2.1]}\n", "primaries: [{address: 'fe80::1'}]\n", "primaries[0].address: fe80::1 is not"},
		{"a zone is put for another", zone, "name: a.example", "name: b.example", "transfer.notify[0].address: 255.255.255.255 is not"},
		{"a target", group, "192.0.2.7", "192.0.2.8", ""},
		{"a target's second", group, "192.0.2.7", "255.255.255.255, port: 81", "targets[1].address: 255.255.255.255 is not"},
		{"a target that no release took", group, "192.0.2.7", "0.0.0.0", "targets[1].address: 0.0.0.0 is not"},
		{"an origin's site", site, "www.a.example", "a.example", ""},
		{"an origin's URL", site, "0.0.0.0", "224.0.0.1", "origins[0].url: 224.0.0.1 is not"},
		{"an accelerator's port", accelerator, "fromPort: 80", "fromPort: 81", ""},
		{"a target group that an accelerator leads to", web + accelerator, "protocol: HTTP", "protocol: TCP", ""},
		{"an accelerator's address", accelerator, "fe80::1", "fe80::3", "ipAddresses[1]: fe80::3 is not"},
		{"an accelerator's endpoint", accelerator, "address: 255.255.255.255", "address: 'fe80::9'", "endpoints[1].address: fe80::9 is not"},
		{"an accelerator's rooms", rooms, "toPort: 1063", "toPort: 1095", ""},
		{"an accelerator's rooms elsewhere", rooms, "fe80::/124", "fe80::/125", ""},
		{"an accelerator's rooms' check", rooms, "thresholdCount: 2", "thresholdCount: 4", "thresholdCount: has no meaning"},
		{"an accelerator's many doors", many, "192.0.2.1", "192.0.2.2", ""},
		{"an accelerator's more doors", many, "10.0.0.5", "10.0.0.5, 10.0.0.6", "open 4096 ports on 6 addresses"},
		{"another target of a loop", loop, "[{address: 192.0.2.8}]}\n---", "[{address: 192.0.2.9}, {address: 192.0.2.8}]}\n---", ""},
		{"another port of a loop", loop, "{fromPort: 7}", "{fromPort: 7}, {fromPort: 9}", "192.0.2.8:9 is accelerator loop's own"},
		{"another address of a loop", loop, "ipAddresses: [192.0.2.8]", "ipAddresses: [192.0.2.8, 192.0.2.9]", ""},
		{"a loop's target leads elsewhere", loop, "[{address: 192.0.2.8}]}\n---", "[{address: 192.0.2.8, port: 9}]}\n---", ""},
		{"a loop's accelerator listens elsewhere", loop, "ipAddresses: [192.0.2.8]", "ipAddresses: [192.0.2.9]", ""},
	} {
		t.Run(of.name, func(t *testing.T) {
			have := of.base
			if !strings.Contains(have, web) {
				have = web + have
			}
			base, err := Build(1, mustSplit(t, region+have), Options{Stored: true})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := Build(1, mustSplit(t, region+have), Options{}); err == nil {
				t.Fatal("it has no old fault")
			}
			put := of.base
			if i := strings.Index(put, accelerator); i > 0 {
				put = put[:i] // the accelerator is judged again
			}
			text := strings.Replace(put, of.from, of.to, 1)
			if text == put {
				t.Fatal("nothing is edited")
			}
			_, err = base.With(2, mustSplit(t, text), nil, Options{})
			if of.want == "" && err != nil || of.want != "" && (err == nil || !strings.Contains(err.Error(), of.want)) {
				t.Errorf("got %v, want %q", err, of.want)
			}
		})
	}
}
