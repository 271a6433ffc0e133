package node

import (
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/node/api"
	"github.com/perigee-net/perigee/testbed/memnet"
)

// opening is an accelerator with so many ports, from one on, on some addresses.
func opening(name, addresses string, from, ports int) string {
	return fmt.Sprintf("---\nkind: Accelerator\nname: %s\nipAddresses: [%s]\nlisteners: [{protocol: TCP, portRanges: [{fromPort: %d, toPort: %d}], "+
		"endpointGroups: [{region: eu-central-1, endpoints: [{address: 10.0.1.1}]}]}]\n", name, addresses, from, from+ports-1)
}

// A spec that wants more doors than the process may have files open does not take the node: accelerators stay closed as a whole, the largest first, the same ones at
// each start, and everything else goes on.
func TestDoorsLeaveRoomForTheNode(t *testing.T) {
	spec := region + opening("a-large", "203.0.113.1, 203.0.113.2", 7000, 30) + opening("middle", "203.0.113.3", 7000, 25) + opening("small", "203.0.113.4", 7000, 10)
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		in := memnet.New(1)
		defer in.Close()
		cfg := configOf(in, "a", dir, netip.MustParseAddr("192.0.2.1"))
		cfg.maxDoors = 40
		for life1 := range 2 {
			cfg.Bootstrap = life1 == 0
			life(t, cfg, func(n *Node) {
				if life1 == 0 {
					applied(t, n, spec)
				}
				time.Sleep(10 * time.Second)
				for _, of := range []struct {
					at   string
					open bool
				}{{"203.0.113.1:7000", false}, {"203.0.113.2:7029", false}, {"203.0.113.3:7000", true}, {"203.0.113.3:7024", true}, {"203.0.113.4:7009", true}, {"192.0.2.1:7948", true}} {
					if is := n.front.IsOpen("tcp", netip.MustParseAddrPort(of.at)); is != of.open {
						t.Errorf("%s is open: %v", of.at, is)
					}
				}
				st := n.status()
				const want = "Accelerator a-large: it wants 60 doors: this node has open files for 40, of which 35 are taken (and 59 more of its doors)"
				if len(st.Members) != 1 || st.Members[0].Doors != want {
					t.Errorf("told %q", st.Members[0].Doors)
				}
				for name, want := range map[string]string{"a-large": strings.TrimPrefix(want, "Accelerator a-large: "), "small": ""} {
					if told := n.closedOf("Accelerator " + name); told != want {
						t.Errorf("of %s %q", name, told)
					}
				}
				for at, want := range map[string]string{
					"203.0.113.1:7000": "the door tcp 203.0.113.1:7000 of a is closed: it wants 60 doors: this node has open files for 40, of which 35 are taken\n",
					"203.0.113.3:7000": "",
				} {
					told, err := n.explain(api.ExplainRequest{What: "tcp", Target: at})
					is := strings.Contains(textOf(told), " is closed")
					if err != nil || is != (want != "") || !strings.Contains(textOf(told), want) || strings.HasPrefix(told.Answer, "nowhere") != is {
						t.Errorf("%s is explained as %s, %v", at, textOf(told), err)
					}
				}
				if c := n.doorCounts.Counters(); c["node_doors_closed"] != 60 || c["node_doors_beyond"] != 60 {
					t.Errorf("counted %v", c)
				}
				if life1 == 1 {
					applied(t, n, opening("a-large", "203.0.113.1", 7000, 5))
					time.Sleep(10 * time.Second)
					if st := n.status(); st.Members[0].Doors != "" || !n.front.IsOpen("tcp", netip.MustParseAddrPort("203.0.113.1:7004")) {
						t.Errorf("once there is room: %q", st.Members[0].Doors)
					}
				}
			})
		}
	})
}

// A node's own door stands for all addresses of an accelerator.
// A port holds as many connections as the node's flags say, of one client and in all.
func TestAPortHoldsAsManyConnectionsAsItIsTold(t *testing.T) {
	for _, c := range []struct{ most, ofClient, served int }{{0, 0, 6}, {4, 4, 4}, {0, 2, 2}, {3, 2, 2}} {
		dir := t.TempDir()
		synctest.Test(t, func(t *testing.T) {
			in := memnet.New(1)
			defer in.Close()
			cfg := configOf(in, "a", dir, netip.MustParseAddr("192.0.2.1"))
			cfg.Bootstrap, cfg.Connections, cfg.ConnectionsPerClient = true, c.most, c.ofClient
			client := in.Host("client", spec.Location{}, netip.MustParseAddr("198.51.100.1"))
			life(t, cfg, func(n *Node) {
				time.Sleep(time.Second)
				served := 0
				for range 6 {
					conn, err := client.Dial(t.Context(), "tcp", "192.0.2.1:80")
					if err != nil {
						t.Fatal(err)
					}
					defer conn.Close()
					io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
					if _, err := conn.Read(make([]byte, 1)); err == nil {
						served++
					}
				}
				if served != c.served {
					t.Errorf("%+v: %d of 6 were served", c, served)
				}
			})
		})
	}
}

func TestAnOwnDoorStandsForAllAddresses(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		in := memnet.New(1)
		defer in.Close()
		cfg := configOf(in, "a", dir, netip.MustParseAddr("192.0.2.1")).bootstrapped()
		cfg.OwnDoors = true
		life(t, cfg, func(n *Node) {
			applied(t, n, region+opening("two", "203.0.113.1, 203.0.113.2", 7000, 2))
			time.Sleep(3 * time.Second)
			for _, at := range []string{"203.0.113.1:7000", "203.0.113.2:7001", "192.0.2.1:7000", "192.0.2.1:7001"} {
				if !n.front.IsOpen("tcp", netip.MustParseAddrPort(at)) {
					t.Errorf("%s is closed", at)
				}
			}
			if st := n.status(); st.Members[0].Doors != "" {
				t.Errorf("told %q", st.Members[0].Doors)
			}
			applied(t, n, opening("other", "203.0.113.3", 7001, 3))
			time.Sleep(3 * time.Second)
			if st := n.status(); st.Members[0].Doors != "Accelerator two: tcp 192.0.2.1:7001 is another door of this node" &&
				st.Members[0].Doors != "Accelerator other: tcp 192.0.2.1:7001 is another door of this node" {
				t.Errorf("told %q", st.Members[0].Doors)
			}
		})
	})
}

func TestClosedDoorsAreToldByWhoWantsThem(t *testing.T) {
	closed := func(owners ...closedOwner) string { return (&closedDoors{owners: owners}).String() }
	if got := closed(); got != "" {
		t.Errorf("of none %q", got)
	}
	if got := closed(closedOwner{"Accelerator a", "taken", 1}, closedOwner{"Accelerator b", "taken too", 13}); got != "Accelerator a: taken; Accelerator b: taken too (and 12 more of its doors)" {
		t.Errorf("got %q", got)
	}
	many := slices.Repeat([]closedOwner{{"Accelerator a", strings.Repeat("x", 80), 1}}, 20)
	if got := closed(many...); len(got) > maxRefused || !strings.HasSuffix(got, "x; and 16 more") {
		t.Errorf("of many %d bytes: %q", len(got), got)
	}
	if got := closed(closedOwner{"Accelerator a", strings.Repeat("ä", maxRefused), 1}, many[0]); len(got) > maxRefused || !strings.HasSuffix(got, "ä; and 1 more") {
		t.Errorf("of a long one %d bytes: %q", len(got), got)
	}
	for n := range 12 {
		if got := closed(many[:n]...); len(got) > maxRefused {
			t.Errorf("of %d %d bytes", n, len(got))
		}
	}
}

// rooms is an accelerator of custom routing of which one destination of four may have traffic.
const rooms = "---\nkind: Accelerator\nname: rooms\ntype: CUSTOM_ROUTING\nipAddresses: [203.0.113.1]\nlisteners: [{protocol: TCP, portRanges: [{fromPort: 7000, toPort: 7003}], " +
	"endpointGroups: [{region: eu-central-1, destinationConfigurations: [{fromPort: 80}], " +
	"endpoints: [{subnet: 10.0.1.0/30, allowedTraffic: [{destinationAddresses: [10.0.1.2], destinationPorts: [80]}]}]}]}]\n"

// A port that leads nowhere traffic may go is not one that is about to be opened.
func TestAPortThatIsNeverOpenedIsExplainedAsSuch(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		in := memnet.New(1)
		defer in.Close()
		life(t, configOf(in, "a", dir, netip.MustParseAddr("192.0.2.1")).bootstrapped(), func(n *Node) {
			applied(t, n, region+rooms)
			time.Sleep(3 * time.Second)
			const never = "no node opens a port that leads nowhere traffic may go"
			for at, want := range map[string]string{"203.0.113.1:7001": never, "203.0.113.1:7003": never, "203.0.113.1:7000": "", "203.0.113.1:7002": ""} {
				told, err := n.explain(api.ExplainRequest{What: "tcp", Target: at})
				text := textOf(told)
				if err != nil || strings.Contains(text, "not opened yet") || strings.Contains(text, "the door tcp "+at+" of a is closed: "+never+"\n") != (want != "") ||
					(told.Answer == "nowhere: "+never) != (want != "") {
					t.Errorf("%s is explained as %s, %v", at, text, err)
				}
			}
		})
	})
}

func TestWhatNobodyChecksIsCountedAsUnchecked(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		in := memnet.New(1)
		defer in.Close()
		life(t, configOf(in, "a", dir, netip.MustParseAddr("192.0.2.1")).bootstrapped(), func(n *Node) {
			applied(t, n, region+rooms+opening("web", "203.0.113.2", 7000, 1))
			time.Sleep(3 * time.Second)
			var text strings.Builder
			if err := n.metrics.Write(&text); err != nil {
				t.Fatal(err)
			}
			var got []string
			for line := range strings.Lines(text.String()) {
				if strings.HasPrefix(line, "perigee_accelerator_endpoints{") || strings.HasPrefix(line, "perigee_accelerator_endpoint_healthy{") {
					got = append(got, strings.TrimSpace(line))
				}
			}
			want := []string{
				`perigee_accelerator_endpoint_healthy{accelerator="web",endpoint="10.0.1.1",endpoint_region="eu-central-1",listener="TCP 7000"} 0`,
				`perigee_accelerator_endpoints{accelerator="rooms",endpoint_region="eu-central-1",state="unchecked"} 1`,
				`perigee_accelerator_endpoints{accelerator="web",endpoint_region="eu-central-1",state="healthy"} 0`,
				`perigee_accelerator_endpoints{accelerator="web",endpoint_region="eu-central-1",state="unhealthy"} 1`,
			}
			if !slices.Equal(got, want) {
				t.Errorf("got %s", strings.Join(got, "\n"))
			}
		})
	})
}
