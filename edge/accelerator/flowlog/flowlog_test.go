package flowlog

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/perigee-net/perigee/cluster/lines"
)

func anEntry() Entry {
	return Entry{
		Accelerator: "game", Client: netip.MustParseAddrPort("203.0.113.9:40000"), Local: netip.MustParseAddrPort("198.51.100.1:443"),
		Endpoint: "endpoint/game/10.0.0.1:8443", EndpointAddr: EndpointAddr("endpoint/game/10.0.0.1:8443"), Region: "eu", POP: "fra1", Protocol: "TCP",
		Packets: 7, Bytes: 1234, Start: time.Unix(1772352960, 0), End: time.Unix(1772353020, 5e8),
		Node: "fra1-a", To: "fra1-b", By: "ams1", RTT: 12345 * time.Microsecond, Retransmitted: 2, Began: time.Unix(1772352900, 0), Ended: "closed", Rate: 0.5,
	}
}

func TestARecordHasGlobalAcceleratorsFields(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*Entry)
		want   string
	}{
		{"from a client", func(*Entry) {}, "2.0 - game 203.0.113.9 40000 198.51.100.1 443 10.0.0.1 8443 TCP IPV4 7 1234 1772352960 1772353020 ACCEPT OK - - eu fra1 INGRESS - -"},
		{"to a target group", func(e *Entry) {
			e.Out, e.Packets, e.Endpoint, e.EndpointAddr, e.Skipped = true, -1, "targetGroup/web", EndpointAddr("targetGroup/web"), true
		}, "2.0 - game 203.0.113.9 40000 198.51.100.1 443 - - TCP IPV4 - 1234 1772352960 1772353020 ACCEPT SKIPDATA - - eu fra1 EGRESS - -"},
		{"refused, of IPv6", func(e *Entry) {
			*e = Entry{Accelerator: "game", Client: netip.MustParseAddrPort("[2001:db8::1]:5"), Local: netip.MustParseAddrPort("[2001:db8::2]:443"), Protocol: "UDP",
				Packets: -1, Start: e.Start, End: e.Start, Rejected: "NO_ENDPOINT"}
		}, "2.0 - game 2001:db8::1 5 2001:db8::2 443 - - UDP IPV6 - 0 1772352960 1772352960 REJECT OK - - - - INGRESS - NO_ENDPOINT"},
	} {
		e := anEntry()
		c.change(&e)
		got := string(e.AppendAWS(nil))
		if got != c.want+"\n" || len(strings.Fields(got)) != 24 {
			t.Errorf("%s: got %q", c.name, got)
		}
		var have struct {
			Accelerator, Client, Action, LogStatus, Direction, RejectReason string
			Bytes                                                           int64
		}
		if err := json.Unmarshal(e.AppendJSON(nil), &have); err != nil {
			t.Fatal(err)
		}
		f := strings.Fields(got)
		if have.Client != f[3] || have.Bytes != e.Bytes || have.Action != f[15] || have.LogStatus != f[16] || have.Direction != f[21] || have.RejectReason != e.Rejected {
			t.Errorf("%s: as JSON %+v", c.name, have)
		}
	}
}

func TestJSONTellsAllThatIsKnown(t *testing.T) {
	e := anEntry()
	var got map[string]any
	if err := json.Unmarshal(e.AppendJSON(nil), &got); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"version": "2.0", "accelerator": "game", "client": "203.0.113.9", "clientPort": 40000.0, "acceleratorIP": "198.51.100.1", "acceleratorPort": 443.0,
		"endpoint": "endpoint/game/10.0.0.1:8443", "endpointIP": "10.0.0.1", "endpointPort": 8443.0, "protocol": "TCP", "ipAddressType": "IPV4", "packets": 7.0,
		"bytes": 1234.0, "start": "2026-03-01T08:16:00.000Z", "end": "2026-03-01T08:17:00.500Z", "action": "ACCEPT", "logStatus": "OK", "endpointRegion": "eu",
		"pop": "fra1", "direction": "INGRESS", "node": "fra1-a", "to": "fra1-b", "by": "ams1", "rttMilliseconds": 12.345, "retransmitted": 2.0,
		"began": "2026-03-01T08:15:00.000Z", "ended": "closed", "sampleRate": 0.5,
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v", got)
	}
}

// gate lets nothing through until it is opened.
type gate struct {
	bytes.Buffer
	open chan struct{}
}

func (g *gate) Write(b []byte) (int, error) {
	<-g.open
	return g.Buffer.Write(b)
}

func TestARecordSaysThatSomeBeforeItWereSkipped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &gate{open: make(chan struct{})}
		l, err := Open(Config{Path: Stdout, Out: out})
		if err != nil {
			t.Fatal(err)
		}
		e := anEntry()
		line := len(e.AppendAWS(nil))
		for range 2*lines.QueueBytes/line + 10 {
			l.Add(&e)
			synctest.Wait()
		}
		close(out.open)
		time.Sleep(time.Second)
		l.Add(&e)
		l.Add(&e)
		l.Close()
		c := l.Counters()
		if c["accelerator_log_dropped_total"] == 0 || strings.Count(out.String(), "SKIPDATA") != 1 || !strings.HasSuffix(strings.TrimSpace(out.String()), "ACCEPT OK - - eu fra1 INGRESS - -") {
			t.Errorf("%v, %d records say so", c, strings.Count(out.String(), "SKIPDATA"))
		}
		if got := uint64(strings.Count(out.String(), "\n")); got != c["accelerator_log_lines_total"] {
			t.Errorf("%d lines, counted %v", got, c)
		}
	})
	if n := (*Log)(nil).Counters()["accelerator_log_lines_total"]; n != 0 {
		t.Errorf("%d lines of no log", n)
	}
}
