package anycast

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/perigee-net/perigee/cluster/trace"
)

func addrs(texts ...string) (out []netip.Addr) {
	for _, t := range texts {
		out = append(out, netip.MustParseAddr(t))
	}
	return out
}

func TestWhatANodeAnnounces(t *testing.T) {
	v4, v6 := netip.MustParsePrefix("198.51.100.7/32"), netip.MustParsePrefix("2001:db8:100::7/128")
	for name, c := range map[string]struct {
		wish Wish
		want []Route
		why  string
	}{
		"a node that serves announces each address": {
			Wish{Serving: true, Addresses: addrs("2001:db8:100::7", "198.51.100.7")},
			[]Route{{Prefix: v4}, {Prefix: v6}},
			"198.51.100.7 is announced: this node serves it",
		},
		"a drained node asks that others be preferred": {
			Wish{Serving: true, Drained: true, Addresses: addrs("198.51.100.7")},
			[]Route{{Prefix: v4, GracefulShutdown: true}},
			"so that others are preferred: this node is drained",
		},
		"a node that leaves does so too": {
			Wish{Serving: true, Leaving: true, Drained: true, Addresses: addrs("198.51.100.7")},
			[]Route{{Prefix: v4, GracefulShutdown: true}},
			"so that others are preferred: this node leaves",
		},
		"a node that does not serve announces nothing": {
			Wish{Drained: true, Leaving: true, Addresses: addrs("198.51.100.7")}, nil,
			"this node does not serve",
		},
		"without accelerators nothing is announced": {
			Wish{Serving: true}, nil, "no enabled accelerator",
		},
		"an address that two accelerators share is announced once": {
			Wish{Serving: true, Addresses: addrs("198.51.100.7", "::ffff:198.51.100.7", "198.51.100.7")},
			[]Route{{Prefix: v4}}, "198.51.100.7 is announced",
		},
		"what no router leads to is left out": {
			Wish{Serving: true, Addresses: append(addrs("127.0.0.9", "::1", "0.0.0.0", "::", "224.0.0.1", "ff02::1", "169.254.1.1", "fe80::1%eth0", "255.255.255.255", "198.51.100.7"), netip.Addr{})},
			[]Route{{Prefix: v4}}, "127.0.0.9 is not announced: no router leads to such an address",
		},
		"nor is an address of the other network zone announced": {
			Wish{Serving: true, Addresses: addrs("198.51.100.7", "198.51.100.8"), Elsewhere: addrs("::ffff:198.51.100.8")},
			[]Route{{Prefix: v4}}, "198.51.100.8 is not announced: it is of the other network zone",
		},
		"not by a node that is drained either": {
			Wish{Serving: true, Drained: true, Addresses: addrs("198.51.100.7", "198.51.100.8"), Elsewhere: addrs("198.51.100.8")},
			[]Route{{Prefix: v4, GracefulShutdown: true}}, "198.51.100.8 is not announced",
		},
		"and said if nothing else is left": {
			Wish{Serving: true, Addresses: addrs("127.0.0.9")}, nil, "no enabled accelerator has one",
		},
	} {
		t.Run(name, func(t *testing.T) {
			c.wish.Trace = new(trace.Trace)
			got := Wanted(c.wish)
			if diff := cmp.Diff(c.want, got, cmpopts.EquateComparable(netip.Prefix{}, netip.Addr{})); diff != "" {
				t.Error(diff)
			}
			if !strings.Contains(c.wish.Trace.String(), c.why) {
				t.Errorf("the reasons are\n%swithout %q", c.wish.Trace, c.why)
			}
			c.wish.Trace = nil
			if diff := cmp.Diff(got, Wanted(c.wish), cmpopts.EquateComparable(netip.Prefix{}, netip.Addr{})); diff != "" {
				t.Errorf("what is explained is not what is served: %s", diff)
			}
		})
	}
}
