package accelerator

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/testbed/memnet"
)

// halves is a connection whose halves end apart.
type halves interface {
	net.Conn
	CloseWrite() error
	SetLinger(int) error
}

func resets(c halves) {
	c.SetLinger(0)
	c.Close()
}

// isReset says whether a connection has ended by a reset, whatever came before.
func isReset(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// oddIdle is the idle time of flows, here: more than a minute.
const oddIdle = 80 * time.Second

// Clients and endpoints that take their time, go in the middle, or at once: what each end hears is what the other did, on one node and between two.
func TestWhatOneEndDoesTheOtherHears(t *testing.T) {
	const idle = oddIdle
	together := time.Date(2000, 1, 1, 0, 0, 20, 0, time.UTC) // clocks of bubbles begin with that year
	for _, c := range []struct {
		name             string
		client, endpoint func(t *testing.T, c halves)
		idle             uint64 // flows that end for it
	}{
		{"a client sends a byte a minute", func(t *testing.T, c halves) {
			for range 3 {
				time.Sleep(time.Minute)
				c.Write([]byte{'x'})
			}
			c.CloseWrite()
			if got, err := io.ReadAll(c); string(got) != strings.Repeat("x", 3) || err != nil {
				t.Errorf("the client read %q, %v", got, err)
			}
		}, func(t *testing.T, c halves) {
			if n, err := io.Copy(c, c); n != 3 || err != nil {
				t.Errorf("the endpoint read %d bytes, %v", n, err)
			}
			c.CloseWrite()
		}, 0},
		{"a client sends half of what it has, and waits", func(t *testing.T, c halves) {
			io.WriteString(c, "question")
			c.CloseWrite()
			if got, err := io.ReadAll(c); string(got) != "answer" || err != nil {
				t.Errorf("the client read %q, %v", got, err)
			}
		}, func(t *testing.T, c halves) {
			if got, err := io.ReadAll(c); string(got) != "question" || err != nil {
				t.Errorf("the endpoint read %q, %v", got, err)
			}
			time.Sleep(idle - 20*time.Second)
			io.WriteString(c, "answer")
			c.CloseWrite()
		}, 0},
		{"an endpoint takes the flow and says nothing", func(t *testing.T, c halves) {
			begun := time.Now()
			io.WriteString(c, "question")
			if got, err := io.ReadAll(c); len(got) > 0 || !isReset(err) {
				t.Errorf("the client read %q, %v", got, err)
			}
			if took := time.Since(begun); took < idle || took > idle+idle/8+time.Second { // it is looked at now and then
				t.Errorf("it took %v", took)
			}
		}, func(t *testing.T, c halves) {
			if got, err := io.ReadAll(c); string(got) != "question" || !isReset(err) {
				t.Errorf("the endpoint read %q, %v", got, err)
			}
		}, 1},
		{"a client has ended and its endpoint says nothing", func(t *testing.T, c halves) {
			c.CloseWrite()
			if got, err := io.ReadAll(c); len(got) > 0 || !isReset(err) {
				t.Errorf("the client read %q, %v", got, err)
			}
		}, func(t *testing.T, c halves) {
			if got, err := io.ReadAll(c); len(got) > 0 || err != nil {
				t.Errorf("the endpoint read %q, %v", got, err)
			}
			time.Sleep(idle + 10*time.Second)
			if _, err := c.Write([]byte("late")); err == nil {
				time.Sleep(time.Second)
				if _, err = c.Write([]byte("later")); !isReset(err) {
					t.Errorf("the endpoint wrote: %v", err)
				}
			}
		}, 1},
		{"a client resets", func(t *testing.T, c halves) {
			io.WriteString(c, "question")
			time.Sleep(time.Second)
			resets(c)
		}, func(t *testing.T, c halves) {
			if got, err := io.ReadAll(c); string(got) != "question" || !isReset(err) {
				t.Errorf("the endpoint read %q, %v", got, err)
			}
		}, 0},
		{"both close at once", func(t *testing.T, c halves) {
			io.WriteString(c, "question")
			time.Sleep(time.Until(together))
			c.CloseWrite()
			if got, err := io.ReadAll(c); string(got) != "answer" || err != nil {
				t.Errorf("the client read %q, %v", got, err)
			}
		}, func(t *testing.T, c halves) {
			io.WriteString(c, "answer")
			time.Sleep(time.Until(together))
			c.CloseWrite()
			if got, err := io.ReadAll(c); string(got) != "question" || err != nil {
				t.Errorf("the endpoint read %q, %v", got, err)
			}
		}, 0},
		{"both reset at once", func(t *testing.T, c halves) {
			time.Sleep(time.Until(together))
			resets(c)
		}, func(t *testing.T, c halves) {
			time.Sleep(time.Until(together))
			resets(c)
		}, 0},
	} {
		for _, where := range []string{"one node", "two nodes"} {
			t.Run(c.name+", "+where, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { oddly(t, where, c.client, c.endpoint, c.idle) })
			})
		}
	}
}

func oddly(t *testing.T, where string, client, endpoint func(t *testing.T, c halves), idle uint64) {
	in := memnet.New(1)
	defer in.Close()
	edge := in.Host("edge", spec.Location{}, local.Addr())
	person := in.Host("client", spec.Location{}, netip.MustParseAddr("203.0.113.9"))
	target := in.Host("target", spec.Location{}, netip.MustParseAddr("10.0.0.1"))
	n := only(testEndpoint{"a", 128, false})
	var far *memnet.Host
	if where == "one node" {
		n.groups[0].nodes = []string{"self"}
	} else {
		n.groups[0].nodes = []string{"icn1"}
		far = in.Host("icn1", spec.Location{}, netip.MustParseAddr("192.0.2.11"))
		in.Link("edge", "icn1", memnet.Path{Delay: 40 * time.Millisecond})
	}
	n.idle = oddIdle
	s, v, _ := n.build()
	for i := range v.Members {
		v.Members[i].Lasting = true
	}
	l, err := target.Listen("tcp", ":80")
	if err != nil {
		t.Fatal(err)
	}
	p, o, end := onNodes(t, edge, far, s, v, nil)
	var served sync.WaitGroup
	served.Go(func() {
		c, err := l.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		endpoint(t, c.(halves))
	})
	c, err := person.Dial(t.Context(), "tcp", local.String())
	if err != nil {
		t.Fatal(err)
	}
	client(t, c.(halves))
	served.Wait()
	c.Close()
	time.Sleep(12 * time.Second)
	synctest.Wait()
	all, there := p.Counters(), o.Counters()
	if all["accelerator_flows"] != 0 || all["accelerator_flows_idle_total"] != idle || there["origin_flows"] != 0 {
		t.Errorf("%d flows are left here and %d there, %d were idle", all["accelerator_flows"], there["origin_flows"], all["accelerator_flows_idle_total"])
	}
	l.Close()
	end()
}
