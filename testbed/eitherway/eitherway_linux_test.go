//go:build amd64 || arm64

package eitherway

import (
	"errors"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/perigee-net/perigee/origin/relay"
	"github.com/perigee-net/perigee/origin/relay/loop"
)

// A door whose flows are carried to a target, be it by a loop, and given back as the first.
func TestFlowsArePassedByBothWays(t *testing.T) {
	Run(t, "x", 1, func(d *Door) (map[string]uint64, string) {
		counters := map[string]uint64{}
		target := d.Listen()
		given := false
		start := func(c net.Conn, ended func()) {
			far, err := net.Dial("tcp", target.Addr().String())
			if err != nil {
				panic(err)
			}
			relay.New(c, far, time.Hour).Start(func(relay.Result) { ended() })
		}
		shut := d.Open(start, func(c *loop.Conn, ended func(), back func() error) {
			if !given {
				given = true
				counters["x_flows_given_back_total"]++
				back()
				return
			}
			c.Connect(relay.AddrPort(target.Addr()), time.Hour, nil, func(far *loop.Conn, err error) {
				if err != nil {
					d.Error(err)
				}
				loop.Carry(c, far, time.Hour).Start(func(relay.Result) { ended() })
			})
		})
		for range 3 {
			client := d.Dial()
			c, err := target.Accept()
			if err != nil {
				d.Fatal(err)
			}
			d.Whole(client, c.(*net.TCPConn), 10, 20)
			d.Note("one is whole")
		}
		shut()
		if d.Soon != (d.Backs() == 1) {
			d.Errorf("%d were given back", d.Backs())
		}
		counters["x_flows_total"] = 3
		return counters, ""
	})
}

func TestWhatPanicsIsToldAndReset(t *testing.T) {
	Run(t, "x", 0, func(d *Door) (map[string]uint64, string) {
		shut := d.Open(func(net.Conn, func()) { panic("as it is begun") }, func(c *loop.Conn, ended func(), _ func() error) {
			defer ended()
			defer relay.Abort(c)
			d.Panicked("as it is begun")
		})
		d.Refused()
		shut()
		if d.Panics() != 1 {
			d.Errorf("%d panics are told", d.Panics())
		}
		return map[string]uint64{}, ""
	})
}

func TestNobodyListensAtADeafAddress(t *testing.T) {
	if c, err := net.Dial("tcp", New(t, false).Deaf().String()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("%v, %v", c, err)
	}
}
