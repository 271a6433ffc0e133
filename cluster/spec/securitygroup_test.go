package spec

import (
	"slices"
	"testing"
)

func TestTheFaultsOfSecurityGroupsAndPoliciesAreTold(t *testing.T) {
	const site = "\norigins: [{name: a, url: 'http://192.0.2.1'}]\ndefaultCacheBehavior: {targetOrigin: a}\n"
	for _, c := range []struct{ text, want string }{
		{"kind: SecurityGroup\nname: a\ningress:\n- {protocol: tcp, cidrs: [192.0.2.0/24]}", "x.yaml:4: SecurityGroup a: ingress[0].fromPort: is required for tcp"},
		{"kind: SecurityGroup\nname: a\ningress:\n- {protocol: udp, fromPort: 9, toPort: 8, cidrs: [192.0.2.0/24]}", "x.yaml:4: SecurityGroup a: ingress[0].toPort: 8 is below fromPort, 9"},
		{"kind: SecurityGroup\nname: a\ningress:\n- {protocol: -1, fromPort: 9, cidrs: [192.0.2.0/24]}",
			"x.yaml:4: SecurityGroup a: ingress[0].fromPort: has no meaning for protocol -1, which is all ports"},
		{"kind: SecurityGroup\nname: a\ningress:\n- {protocol: tcp, fromPort: 9}", "x.yaml:4: SecurityGroup a: ingress[0].cidrs: is required"},
		{"kind: SecurityGroup\nname: a\ningress:\n- {protocol: tcp, fromPort: 9, cidrs: [192.0.2.1]}",
			`x.yaml:4: SecurityGroup a: ingress[0].cidrs[0]: must be a range of IP addresses like 192.0.2.0/24, not "192.0.2.1"`},
		{"kind: SecurityGroup\nname: a\ningress:\n- {protocol: tcp, fromPort: 9, cidrs: ['::ffff:192.0.2.0/120']}",
			`x.yaml:4: SecurityGroup a: ingress[0].cidrs[0]: must be a range of IP addresses like 192.0.2.0/24, not "::ffff:192.0.2.0/120"`},
		{"kind: Region\nname: eu-central-1\n---\nkind: LoadBalancer\nname: a\nregion: eu-central-1\nsecurityGroups: [web]\nlisteners: [{protocol: HTTP, port: 1, default: {fixedResponse: {statusCode: 200}}}]",
			`x.yaml:7: LoadBalancer a: securityGroups[0]: no security group "web"`},
		{"kind: Distribution\nname: a\naliases: [a.example]\nviewerCertificate: {minimumProtocolVersion: SSLv3}" + site,
			`x.yaml:4: Distribution a: viewerCertificate.minimumProtocolVersion: must be TLSv1, TLSv1_2016, TLSv1.1_2016, TLSv1.2_2018, TLSv1.2_2019, TLSv1.2_2021, TLSv1.2_2025 or TLSv1.3_2025, not "SSLv3"`},
	} {
		docs, err := Split("x.yaml", []byte(c.text))
		if err != nil {
			t.Fatal(err)
		}
		_, err = Build(1, docs, Options{})
		faults, _ := err.(Faults)
		if !slices.ContainsFunc(faults, func(f Fault) bool { return f.String() == c.want }) {
			t.Errorf("got %v\nwant %s", err, c.want)
		}
	}
}

func TestARuleConcernsItsPortsOfItsProtocol(t *testing.T) {
	web, all := IngressRule{Protocol: "tcp", FromPort: 80, ToPort: 81}, IngressRule{Protocol: AllProtocols}
	for _, c := range []struct {
		rule     IngressRule
		protocol string
		port     uint16
		want     bool
	}{
		{web, "tcp", 79, false}, {web, "tcp", 80, true}, {web, "tcp", 81, true}, {web, "tcp", 82, false}, {web, "udp", 80, false},
		{all, "tcp", 1, true}, {all, "udp", 65535, true},
	} {
		if got := c.rule.Concerns(c.protocol, c.port); got != c.want {
			t.Errorf("%+v, %s %d: got %t", c.rule, c.protocol, c.port, got)
		}
	}
}
