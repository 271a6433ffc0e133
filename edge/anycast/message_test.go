package anycast

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/osrg/gobgp/v4/pkg/packet/bgp"
	"pgregory.net/rapid"
)

var plainly = cmpopts.EquateComparable(netip.Prefix{}, netip.Addr{})

// heard is what a neighbour has heard of one prefix.
type heard struct {
	NextHop     netip.Addr
	ASPath      []uint32
	AS4Path     []uint32
	Communities []uint32
	MED         int64 // -1: none
	LocalPref   int64 // -1: none
}

// rib is what a neighbour knows, made by applying messages as a router does.
type rib map[netip.Prefix]heard

func (r rib) apply(update *bgp.BGPUpdate) error {
	for _, w := range update.WithdrawnRoutes {
		if err := r.remove(w); err != nil {
			return err
		}
	}
	h := heard{MED: -1, LocalPref: -1}
	prefixes := slices.Clone(update.NLRI)
	for i, a := range update.PathAttributes {
		switch a := a.(type) {
		case *bgp.PathAttributeNextHop:
			h.NextHop = a.Value
		case *bgp.PathAttributeAsPath:
			for _, p := range a.Value {
				h.ASPath = append(h.ASPath, p.GetAS()...)
			}
		case *bgp.PathAttributeAs4Path:
			for _, p := range a.Value {
				h.AS4Path = append(h.AS4Path, p.GetAS()...)
			}
		case *bgp.PathAttributeCommunities:
			h.Communities = a.Value
		case *bgp.PathAttributeMultiExitDisc:
			h.MED = int64(a.Value)
		case *bgp.PathAttributeLocalPref:
			h.LocalPref = int64(a.Value)
		case *bgp.PathAttributeMpReachNLRI:
			if i != 0 {
				return errors.New("MP_REACH_NLRI is not the first attribute")
			}
			h.NextHop = a.Nexthop
			prefixes = append(prefixes, a.Value...)
		case *bgp.PathAttributeMpUnreachNLRI:
			for _, w := range a.Value {
				if err := r.remove(w); err != nil {
					return err
				}
			}
		}
	}
	for _, p := range prefixes {
		r[netip.MustParsePrefix(p.NLRI.String())] = h
	}
	return nil
}

func (r rib) remove(w bgp.PathNLRI) error {
	prefix := netip.MustParsePrefix(w.NLRI.String())
	if _, known := r[prefix]; !known {
		return fmt.Errorf("%v is withdrawn, but was not announced", prefix)
	}
	delete(r, prefix)
	return nil
}

func (r rib) applyAll(messages [][]byte, as ...*bgp.MarshallingOption) error {
	for _, m := range messages {
		if len(m) > maxMessage {
			return fmt.Errorf("a message of %d bytes", len(m))
		}
		parsed, err := bgp.ParseBGPMessage(m, as...)
		if err != nil {
			return err
		}
		rfs := map[bgp.Family]bgp.BGPAddPathMode{bgp.RF_IPv4_UC: 0, bgp.RF_IPv6_UC: 0}
		if _, err := bgp.ValidateUpdateMsg(parsed.Body.(*bgp.BGPUpdate), rfs, false, false, false); err != nil {
			return err
		}
		if err := r.apply(parsed.Body.(*bgp.BGPUpdate)); err != nil {
			return err
		}
	}
	return nil
}

func external() terms {
	return terms{as: 64512, fourOctets: true, v4: true, v6: true, next4: netip.MustParseAddr("10.0.0.2"), next6: netip.MustParseAddr("fd00::2")}
}

func route(prefix string) Route { return Route{Prefix: netip.MustParsePrefix(prefix)} }

func TestWhatARouteBecomes(t *testing.T) {
	med := uint32(7)
	full := Route{Prefix: netip.MustParsePrefix("198.51.100.7/24"), GracefulShutdown: true, Communities: []uint32{64512<<16 | 9, 64512<<16 | 1, GracefulShutdown, 64512<<16 | 9}, MED: &med}
	communities := []uint32{64512<<16 | 1, 64512<<16 | 9, 0xffff0000}
	internal := external()
	internal.internal = true
	old := external()
	old.fourOctets, old.v6, old.as = false, false, 4_200_000_000
	for name, c := range map[string]struct {
		terms  terms
		route  Route
		want   rib
		unsent int
	}{
		"a plain route": {external(), route("198.51.100.7/32"), rib{
			netip.MustParsePrefix("198.51.100.7/32"): {NextHop: netip.MustParseAddr("10.0.0.2"), ASPath: []uint32{64512}, MED: -1, LocalPref: -1}}, 0},
		"a plain route, IPv6": {external(), route("2001:db8::7/128"), rib{
			netip.MustParsePrefix("2001:db8::7/128"): {NextHop: netip.MustParseAddr("fd00::2"), ASPath: []uint32{64512}, MED: -1, LocalPref: -1}}, 0},
		"all that can be said": {external(), full, rib{
			netip.MustParsePrefix("198.51.100.0/24"): {NextHop: netip.MustParseAddr("10.0.0.2"), ASPath: []uint32{64512}, Communities: communities, MED: 7, LocalPref: -1}}, 0},
		"to a router of the own AS": {internal, route("198.51.100.7/32"), rib{
			netip.MustParsePrefix("198.51.100.7/32"): {NextHop: netip.MustParseAddr("10.0.0.2"), MED: -1, LocalPref: 100}}, 0},
		"to a router of the own AS, with graceful shutdown": {internal, full, rib{
			netip.MustParsePrefix("198.51.100.0/24"): {NextHop: netip.MustParseAddr("10.0.0.2"), Communities: communities, MED: 7, LocalPref: 0}}, 0},
		"to a router that knows AS numbers of two octets only": {old, route("198.51.100.7/32"), rib{
			netip.MustParsePrefix("198.51.100.7/32"): {NextHop: netip.MustParseAddr("10.0.0.2"), ASPath: []uint32{transAS}, AS4Path: []uint32{4_200_000_000}, MED: -1, LocalPref: -1}}, 0},
		"of a family that the router does not take": {old, route("2001:db8::7/128"), rib{}, 1},
		"its own next hop": {external(), Route{Prefix: netip.MustParsePrefix("2001:db8::7/128"), NextHop: netip.MustParseAddr("fd00::99")}, rib{
			netip.MustParsePrefix("2001:db8::7/128"): {NextHop: netip.MustParseAddr("fd00::99"), ASPath: []uint32{64512}, MED: -1, LocalPref: -1}}, 0},
		"no next hop": {terms{as: 1, v4: true, v6: true}, route("2001:db8::7/128"), rib{}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			table := compile([]Route{c.route})
			if len(table.refused) > 0 {
				t.Fatal(table.refused)
			}
			want, unsent := c.terms.takes(table.paths)
			got := rib{}
			if err := got.applyAll(c.terms.updates(diff(nil, want)), &bgp.MarshallingOption{Use2ByteAS: !c.terms.fourOctets}); err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(c.want, got, plainly, cmpopts.EquateEmpty()); d != "" || unsent != c.unsent {
				t.Errorf("%d unsent, want %d; %s", unsent, c.unsent, d)
			}
		})
	}
}

func TestWhatCannotBeAnnouncedIsSaid(t *testing.T) {
	for name, c := range map[string]struct {
		route Route
		why   string
	}{
		"no prefix":                  {Route{}, "not a prefix"},
		"an IPv4 address in IPv6":    {route("::ffff:198.51.100.7/128"), "not a prefix"},
		"a next hop of other family": {Route{Prefix: netip.MustParsePrefix("198.51.100.7/32"), NextHop: netip.MustParseAddr("fd00::1")}, "cannot be its next hop"},
		"a next hop that is nobody":  {Route{Prefix: netip.MustParsePrefix("2001:db8::7/128"), NextHop: netip.MustParseAddr("::1")}, "cannot be its next hop"},
		"too many communities":       {Route{Prefix: netip.MustParsePrefix("198.51.100.7/32"), Communities: make([]uint32, MaxCommunities+1)}, "33 communities: at most 32"},
	} {
		t.Run(name, func(t *testing.T) {
			table := compile([]Route{c.route, route("198.51.100.9/32")})
			if len(table.paths) != 1 || len(table.refused) != 1 || !strings.Contains(table.refused[0], c.why) {
				t.Errorf("%d routes, refused %q, want %q and the other route", len(table.paths), table.refused, c.why)
			}
		})
	}
}

func TestOfTooManyPrefixesAllNodesAnnounceTheSame(t *testing.T) {
	var routes []Route
	for i := range MaxPrefixes + 10 {
		routes = append(routes, Route{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 51, byte(i >> 8), byte(i)}), 32)})
	}
	forward := compile(routes)
	slices.Reverse(routes)
	backward := compile(routes)
	if len(forward.paths) != MaxPrefixes || len(forward.refused) != 10 || !forward.equal(backward) {
		t.Errorf("%d announced and %d refused, the same in any order: %v", len(forward.paths), len(forward.refused), forward.equal(backward))
	}
	if _, ok := forward.paths[netip.MustParsePrefix("198.51.0.0/32")]; !ok {
		t.Error("the first by address is left out")
	}
}

// Whatever was announced before, the messages lead a neighbour from there to what is wanted, and say nothing in vain.
func TestDifferencesLeadToWhatIsWanted(t *testing.T) {
	routes := rapid.Custom(func(t *rapid.T) map[netip.Prefix]path {
		var out []Route
		for range rapid.IntRange(0, 60).Draw(t, "routes") {
			r := Route{GracefulShutdown: rapid.Bool().Draw(t, "graceful")}
			a := netip.AddrFrom4([4]byte{198, 51, 100, byte(rapid.IntRange(0, 31).Draw(t, "address"))})
			if rapid.Bool().Draw(t, "v6") {
				a = netip.AddrFrom16([16]byte{0x20, 0x01, 15: a.AsSlice()[3]})
			}
			r.Prefix = netip.PrefixFrom(a, a.BitLen()-rapid.IntRange(0, 2).Draw(t, "shorter"))
			if rapid.Bool().Draw(t, "med") {
				m := uint32(rapid.IntRange(0, 1).Draw(t, "MED"))
				r.MED = &m
			}
			for range rapid.IntRange(0, 2).Draw(t, "communities") {
				r.Communities = append(r.Communities, uint32(rapid.IntRange(0, 3).Draw(t, "community")))
			}
			out = append(out, r)
		}
		table := compile(out)
		if len(table.refused) > 0 {
			t.Fatal(table.refused)
		}
		paths, _ := external().takes(table.paths)
		return paths
	})
	rapid.Check(t, func(t *rapid.T) {
		before, after := routes.Draw(t, "before"), routes.Draw(t, "after")
		e := external()
		got, straight := rib{}, rib{}
		if err := errors.Join(got.applyAll(e.updates(diff(nil, before))), got.applyAll(e.updates(diff(before, after))), straight.applyAll(e.updates(diff(nil, after)))); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(straight, got, plainly); d != "" {
			t.Fatal(d)
		}
		if len(got) != len(after) {
			t.Fatalf("%d prefixes told of %d", len(got), len(after))
		}
		if again := e.updates(diff(after, maps.Clone(after))); len(again) != 0 {
			t.Fatalf("%d messages where nothing changed", len(again))
		}
		_, fresh := diff(before, after)
		for _, g := range fresh {
			for _, p := range g.prefixes {
				if before[p] == after[p] {
					t.Fatalf("%v is told again", p)
				}
			}
		}
	})
}

func TestAThousandPrefixesAreFewMessages(t *testing.T) {
	for name, prefix := range map[string]func(i int) netip.Prefix{
		"IPv4": func(i int) netip.Prefix {
			return netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 51, byte(i >> 8), byte(i)}), 32)
		},
		"IPv6": func(i int) netip.Prefix {
			return netip.PrefixFrom(netip.AddrFrom16([16]byte{0x20, 1, 14: byte(i >> 8), 15: byte(i)}), 128)
		},
	} {
		t.Run(name, func(t *testing.T) {
			var routes []Route
			communities := make([]uint32, MaxCommunities)
			for i := range communities {
				communities[i] = uint32(i)
			}
			for i := range MaxPrefixes {
				routes = append(routes, Route{Prefix: prefix(i), Communities: communities, GracefulShutdown: true, MED: new(uint32)})
			}
			table := compile(routes)
			want, _ := external().takes(table.paths)
			announce, withdraw := external().updates(diff(nil, want)), external().updates(diff(want, nil))
			got := rib{}
			if err := got.applyAll(announce); err != nil || len(got) != MaxPrefixes {
				t.Fatalf("%d prefixes, %v", len(got), err)
			}
			if err := got.applyAll(withdraw); err != nil || len(got) != 0 {
				t.Fatalf("%d prefixes left, %v", len(got), err)
			}
			if len(announce) > 5 || len(withdraw) > 5 {
				t.Errorf("%d messages to announce and %d to withdraw", len(announce), len(withdraw))
			}
		})
	}
}

func header(length int, kind byte) []byte {
	h := bytes.Repeat([]byte{0xff}, 19)
	binary.BigEndian.PutUint16(h[16:], uint16(length))
	h[18] = kind
	return h
}

func TestABadHeaderIsAnsweredWithItsError(t *testing.T) {
	unmarked := header(19, bgp.BGP_MSG_KEEPALIVE)
	unmarked[7] = 0
	for name, c := range map[string]struct {
		header []byte
		sub    uint8
		data   []byte
	}{
		"no marker":               {unmarked, bgp.BGP_ERROR_SUB_CONNECTION_NOT_SYNCHRONIZED, nil},
		"shorter than a header":   {header(18, bgp.BGP_MSG_KEEPALIVE), bgp.BGP_ERROR_SUB_BAD_MESSAGE_LENGTH, []byte{0, 18}},
		"longer than any message": {header(4097, bgp.BGP_MSG_UPDATE), bgp.BGP_ERROR_SUB_BAD_MESSAGE_LENGTH, []byte{16, 1}},
		"a long KEEPALIVE":        {header(20, bgp.BGP_MSG_KEEPALIVE), bgp.BGP_ERROR_SUB_BAD_MESSAGE_LENGTH, []byte{0, 20}},
		"a short OPEN":            {header(28, bgp.BGP_MSG_OPEN), bgp.BGP_ERROR_SUB_BAD_MESSAGE_LENGTH, []byte{0, 28}},
		"a short UPDATE":          {header(22, bgp.BGP_MSG_UPDATE), bgp.BGP_ERROR_SUB_BAD_MESSAGE_LENGTH, []byte{0, 22}},
		"a short NOTIFICATION":    {header(20, bgp.BGP_MSG_NOTIFICATION), bgp.BGP_ERROR_SUB_BAD_MESSAGE_LENGTH, []byte{0, 20}},
		"a long ROUTE-REFRESH":    {header(24, bgp.BGP_MSG_ROUTE_REFRESH), bgp.BGP_ERROR_SUB_BAD_MESSAGE_LENGTH, []byte{0, 24}},
		"an unknown type":         {header(19, 9), bgp.BGP_ERROR_SUB_BAD_MESSAGE_TYPE, []byte{9}},
		"type 0":                  {header(19, 0), bgp.BGP_ERROR_SUB_BAD_MESSAGE_TYPE, []byte{0}},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, got := decodeHeader(c.header)
			if got == nil || got.code != bgp.BGP_ERROR_MESSAGE_HEADER_ERROR || got.sub != c.sub || !bytes.Equal(got.data, c.data) {
				t.Errorf("got %+v, want 1/%d %v", got, c.sub, c.data)
			}
		})
	}
}

// said is an OPEN as a test says it.
type said struct {
	as      uint32
	hold    uint16
	id      string
	caps    []bgp.ParameterCapabilityInterface
	plain   bool // without capabilities
	unknown bool // with a parameter that nobody knows
}

func families(f ...bgp.Family) (out []bgp.ParameterCapabilityInterface) {
	for _, f := range f {
		out = append(out, bgp.NewCapMultiProtocol(f))
	}
	return out
}

func (o said) message() []byte {
	var parameters []bgp.OptionParameterInterface
	if !o.plain {
		parameters = append(parameters, bgp.NewOptionParameterCapability(append(o.caps, bgp.NewCapFourOctetASNumber(o.as))))
	}
	if o.unknown {
		parameters = append(parameters, &bgp.OptionParameterUnknown{ParamType: 1, Value: []byte{1, 2}})
	}
	m, err := bgp.NewBGPOpenMessage(twoOctets(o.as), o.hold, netip.MustParseAddr(o.id), parameters)
	if err != nil {
		panic(err)
	}
	return serialized(m)
}

func TestWhatTwoOpensAgreeOn(t *testing.T) {
	us := Config{AS: 64512, RouterID: netip.MustParseAddr("10.0.0.2")}
	them := Neighbor{AS: 4_200_000_000, HoldTime: 9 * time.Second}
	inside := Neighbor{AS: 64512, HoldTime: 9 * time.Second}
	small := Neighbor{AS: 64500, HoldTime: 9 * time.Second}
	both := families(bgp.RF_IPv4_UC, bgp.RF_IPv6_UC)
	for name, c := range map[string]struct {
		neighbor  Neighbor
		incapable bool // this side said no capabilities
		open      said
		want      terms
		sub       int // -1: agreed
		data      []byte
	}{
		"both families":                      {them, false, said{as: them.AS, hold: 90, id: "10.0.0.1", caps: both}, terms{as: 64512, fourOctets: true, v4: true, v6: true, hold: 9 * time.Second}, -1, nil},
		"the shorter hold time":              {them, false, said{as: them.AS, hold: 3, id: "10.0.0.1", caps: both}, terms{as: 64512, fourOctets: true, v4: true, v6: true, hold: 3 * time.Second}, -1, nil},
		"internal":                           {inside, false, said{as: 64512, hold: 9, id: "10.0.0.1", caps: both}, terms{as: 64512, internal: true, fourOctets: true, v4: true, v6: true, hold: 9 * time.Second}, -1, nil},
		"IPv6 alone":                         {them, false, said{as: them.AS, hold: 9, id: "10.0.0.1", caps: families(bgp.RF_IPv6_UC)}, terms{as: 64512, fourOctets: true, v6: true, hold: 9 * time.Second}, -1, nil},
		"no family named is IPv4":            {them, false, said{as: them.AS, hold: 9, id: "10.0.0.1"}, terms{as: 64512, fourOctets: true, v4: true, hold: 9 * time.Second}, -1, nil},
		"no capabilities":                    {small, false, said{as: 64500, hold: 9, id: "10.0.0.1", plain: true}, terms{as: 64512, v4: true, hold: 9 * time.Second}, -1, nil},
		"what we did not say does not count": {small, true, said{as: 64500, hold: 9, id: "10.0.0.1", caps: both}, terms{as: 64512, v4: true, hold: 9 * time.Second}, -1, nil},
		"nor what they said then":            {small, true, said{as: 64500, hold: 9, id: "10.0.0.1", caps: families(bgp.RF_IPv6_UC)}, terms{as: 64512, v4: true, hold: 9 * time.Second}, -1, nil},
		"our router id in another AS":        {them, false, said{as: them.AS, hold: 9, id: "10.0.0.2", caps: both}, terms{as: 64512, fourOctets: true, v4: true, v6: true, hold: 9 * time.Second}, -1, nil},

		"another AS":                  {them, false, said{as: 64501, hold: 9, id: "10.0.0.1", caps: both}, terms{}, bgp.BGP_ERROR_SUB_BAD_PEER_AS, nil},
		"router id 0.0.0.0":           {them, false, said{as: them.AS, hold: 9, id: "0.0.0.0", caps: both}, terms{}, bgp.BGP_ERROR_SUB_BAD_BGP_IDENTIFIER, nil},
		"our router id in our AS":     {inside, false, said{as: 64512, hold: 9, id: "10.0.0.2", caps: both}, terms{}, bgp.BGP_ERROR_SUB_BAD_BGP_IDENTIFIER, nil},
		"a hold time of 2 s":          {them, false, said{as: them.AS, hold: 2, id: "10.0.0.1", caps: both}, terms{}, bgp.BGP_ERROR_SUB_UNACCEPTABLE_HOLD_TIME, nil},
		"no hold time":                {them, false, said{as: them.AS, hold: 0, id: "10.0.0.1", caps: both}, terms{}, bgp.BGP_ERROR_SUB_UNACCEPTABLE_HOLD_TIME, nil},
		"a parameter that is unknown": {them, false, said{as: them.AS, hold: 9, id: "10.0.0.1", unknown: true}, terms{}, bgp.BGP_ERROR_SUB_UNSUPPORTED_OPTIONAL_PARAMETER, nil},
		"no family that we have":      {them, false, said{as: them.AS, hold: 9, id: "10.0.0.1", caps: families(bgp.RF_EVPN)}, terms{}, bgp.BGP_ERROR_SUB_UNSUPPORTED_CAPABILITY, []byte{1, 4, 0, 1, 0, 1}},
	} {
		t.Run(name, func(t *testing.T) {
			got, wrong := judgeOpen(us, c.neighbor, !c.incapable, c.open.message()[headerLen:])
			if c.sub < 0 {
				if wrong != nil || got != c.want {
					t.Errorf("got %+v, %v, want %+v", got, wrong, c.want)
				}
				return
			}
			if wrong == nil || wrong.code != bgp.BGP_ERROR_OPEN_MESSAGE_ERROR || int(wrong.sub) != c.sub || !bytes.Equal(wrong.data, c.data) {
				t.Errorf("got %+v, want 2/%d %v", wrong, c.sub, c.data)
			}
		})
	}
	t.Run("another version", func(t *testing.T) {
		body := said{as: 64500, hold: 9, id: "10.0.0.1"}.message()[headerLen:]
		body[0] = 3
		if _, wrong := judgeOpen(us, small, true, body); wrong == nil || wrong.sub != bgp.BGP_ERROR_SUB_UNSUPPORTED_VERSION_NUMBER || !bytes.Equal(wrong.data, []byte{0, 4}) {
			t.Errorf("got %+v", wrong)
		}
	})
	t.Run("parameters that do not fit", func(t *testing.T) {
		body := said{as: 64500, hold: 9, id: "10.0.0.1"}.message()[headerLen:]
		if _, wrong := judgeOpen(us, small, true, body[:len(body)-1]); wrong == nil || wrong.code != bgp.BGP_ERROR_OPEN_MESSAGE_ERROR || wrong.sub != 0 {
			t.Errorf("got %+v, want 2/0 (RFC 4271, 6.2)", wrong)
		}
	})
}

func TestAnUpdateMustHoldItsParts(t *testing.T) {
	for name, c := range map[string]struct {
		body []byte
		fits bool
	}{
		"nothing":                      {[]byte{0, 0, 0, 0}, true},
		"all three parts":              {[]byte{0, 1, 0, 0, 2, 9, 9, 0}, true},
		"no prefixes":                  {[]byte{0, 1, 0, 0, 2, 9, 9}, true},
		"attributes that go beyond":    {[]byte{0, 1, 0, 0, 3, 9, 9}, false},
		"withdrawals without the next": {[]byte{0, 2, 0, 0}, false},
		"withdrawals that go beyond":   {[]byte{255, 255, 0, 0}, false},
	} {
		if wrong := checkUpdate(c.body); (wrong == nil) != c.fits {
			t.Errorf("%s: %v", name, wrong)
		}
	}
}

func TestWhatARefreshAsksFor(t *testing.T) {
	for name, c := range map[string]struct {
		body []byte
		want bgp.Family
	}{
		"IPv4 unicast":              {[]byte{0, 1, 0, 1}, bgp.RF_IPv4_UC},
		"IPv6 unicast":              {[]byte{0, 2, 0, 1}, bgp.RF_IPv6_UC},
		"IPv4 multicast":            {[]byte{0, 1, 0, 2}, 0},
		"a begin that nobody asked": {[]byte{0, 1, 1, 1}, 0}, // RFC 7313
	} {
		if got := decodeRefresh(c.body); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestWhatIsGoneWhileItIsAskedForIsTakenBack(t *testing.T) {
	gone4, stays4, stays6 := netip.MustParsePrefix("198.51.100.7/32"), netip.MustParsePrefix("198.51.100.8/32"), netip.MustParsePrefix("2001:db8::7/128")
	table := compile([]Route{{Prefix: gone4}, {Prefix: stays4}, {Prefix: stays6}})
	sent, _ := external().takes(table.paths)
	want := maps.Clone(sent)
	delete(want, gone4)
	gone, fresh := diff(forgotten(sent, netip.Addr.Is4), want)
	if !slices.Equal(gone, []netip.Prefix{gone4}) || len(fresh) != 1 || !slices.Equal(fresh[0].prefixes, []netip.Prefix{stays4}) {
		t.Errorf("gone %v, fresh %+v", gone, fresh)
	}
}

func TestWhereASessionLeads(t *testing.T) {
	set4, set6 := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	for local, want := range map[string][2]netip.Addr{
		"10.0.0.2:1234":          {netip.MustParseAddr("10.0.0.2"), set6},
		"[::ffff:10.0.0.2]:1234": {netip.MustParseAddr("10.0.0.2"), set6},
		"[fd00::2]:1234":         {set4, netip.MustParseAddr("fd00::2")},
		"[fe80::2%eth0]:1234":    {set4, set6},
		"pipe":                   {set4, set6},
	} {
		next4, next6 := nextHops(Config{NextHop4: set4, NextHop6: set6}, name(local))
		if next4 != want[0] || next6 != want[1] {
			t.Errorf("a session from %s leads to %v and %v, want %v", local, next4, next6, want)
		}
	}
}

// name is an address as package net says it.
type name string

func (n name) Network() string { return "tcp" }
func (n name) String() string  { return string(n) }

func TestAReasonIsCutBetweenLetters(t *testing.T) {
	for reason, want := range map[string]string{
		"":                         "",
		"rolling restart":          "rolling restart",
		"bad \xff byte":            "bad \ufffd byte",
		strings.Repeat("é", 200):   strings.Repeat("é", 127),
		strings.Repeat("x", 10000): strings.Repeat("x", 255),
	} {
		parsed, err := bgp.ParseBGPMessage(shutdown(reason).message())
		if err != nil {
			t.Fatal(err)
		}
		n := parsed.Body.(*bgp.BGPNotification)
		got := decodeNotification(append([]byte{n.ErrorCode, n.ErrorSubcode}, n.Data...))
		if got.code != bgp.BGP_ERROR_CEASE || got.sub != bgp.BGP_ERROR_SUB_ADMINISTRATIVE_SHUTDOWN || got.text != want {
			t.Errorf("%.20q became %+v", reason, got)
		}
	}
}

func TestRetriesGrowAndAreSpread(t *testing.T) {
	for failures, want := range map[int]time.Duration{1: firstRetry, 2: time.Second, 3: 2 * time.Second, 4: 4 * time.Second, 6: 16 * time.Second, 7: maxRetry, 1000: maxRetry} {
		if got := retryAfter(failures, 0); got != want {
			t.Errorf("after %d failures %v, want %v", failures, got, want)
		}
		if got := retryAfter(failures, 1); got != want*3/4 {
			t.Errorf("after %d failures at the least %v, want %v", failures, got, want*3/4)
		}
	}
}

// Whatever a neighbour sends is read without a fault of ours, within its bounds, and what is wrong has a code.
func FuzzRead(f *testing.F) {
	f.Add(said{as: 4_200_000_000, hold: 9, id: "10.0.0.1", caps: families(bgp.RF_IPv4_UC, bgp.RF_IPv6_UC)}.message())
	f.Add(said{as: 64500, hold: 9, id: "10.0.0.1", unknown: true}.message())
	f.Add(append(keepalive(), shutdown("bye").message()...))
	f.Add(serialized(bgp.NewBGPRouteRefreshMessage(bgp.AFI_IP6, 0, bgp.SAFI_UNICAST)))
	table := compile([]Route{route("198.51.100.7/32"), route("2001:db8::7/128")})
	want, _ := external().takes(table.paths)
	f.Add(slices.Concat(external().updates(diff(nil, want))...))
	f.Add(header(4096, bgp.BGP_MSG_OPEN))
	us := Config{AS: 64512, RouterID: netip.MustParseAddr("10.0.0.2")}
	them := Neighbor{AS: 4_200_000_000, HoldTime: 9 * time.Second}
	f.Fuzz(func(t *testing.T, data []byte) {
		r := reader{from: bytes.NewReader(data)}
		for {
			kind, body, err := r.next()
			var wrong *notice
			if err != nil {
				if errors.As(err, &wrong) && wrong.code != bgp.BGP_ERROR_MESSAGE_HEADER_ERROR {
					t.Fatalf("a header's error is %v", wrong)
				}
				return
			}
			if len(body) > maxMessage-headerLen {
				t.Fatalf("a body of %d bytes", len(body))
			}
			switch kind {
			case bgp.BGP_MSG_OPEN:
				var agreed terms
				if agreed, wrong = judgeOpen(us, them, true, body); wrong == nil && (agreed.hold < MinHoldTime || agreed.hold > them.HoldTime || !agreed.v4 && !agreed.v6) {
					t.Fatalf("agreed on %+v", agreed)
				}
			case bgp.BGP_MSG_UPDATE:
				wrong = checkUpdate(body)
			case bgp.BGP_MSG_NOTIFICATION:
				_ = decodeNotification(body).Error()
			case bgp.BGP_MSG_ROUTE_REFRESH:
				decodeRefresh(body)
			}
			if wrong != nil {
				if wrong.code == 0 || wrong.why == "" || len(wrong.message()) > maxMessage {
					t.Fatalf("a notice without a code or a reason: %+v", wrong)
				}
				return
			}
		}
	})
}
