package front

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// flowing echoes what a connection brings, long after the door's goroutine has gone on.
func flowing(c net.Conn, ended func()) {
	go func() {
		echo(c)
		c.Close()
		ended()
	}()
}

func TestAFlowGoesOnWhenItsDoorHasBegunIt(t *testing.T) {
	inWorld(t, Config{}, func(w *world) {
		w.set(Door{Network: "tcp", Address: at(9000), Flow: flowing})
		var all []net.Conn
		for range 3 * maxStarters {
			c := w.dial(9000)
			fmt.Fprint(c, "x")
			if !full(c, make([]byte, 1)) {
				t.Fatal("no echo")
			}
			all = append(all, c)
		}
		w.counted("front_connections", 3*maxStarters)
		for _, c := range all {
			c.Close()
		}
		w.counted("front_connections", 0)
	})
}

func TestFlowsThatBeginAtOnceDoNotWaitForEachOther(t *testing.T) {
	inWorld(t, Config{}, func(w *world) {
		var begun atomic.Int64
		w.set(Door{Network: "tcp", Address: at(9000), Flow: func(c net.Conn, ended func()) {
			begun.Add(1)
			time.Sleep(time.Minute)
			flowing(c, ended)
		}})
		for range 2 {
			began := begun.Load()
			var all []net.Conn
			for range 2 * maxStarters {
				all = append(all, w.dial(9000))
			}
			time.Sleep(time.Second)
			if n := begun.Load() - began; n != 2*maxStarters {
				t.Errorf("%d have begun", n)
			}
			for _, c := range all {
				c.Close()
			}
			time.Sleep(2 * time.Minute)
			if n := w.front.starters.waiting.Load(); n != maxStarters {
				t.Errorf("%d goroutines wait for more", n)
			}
		}
		w.counted("front_connections", 0)
	})
}

func TestCloseWaitsForFlowsAndCutsThemOff(t *testing.T) {
	inWorld(t, Config{}, func(w *world) {
		w.set(Door{Network: "tcp", Address: at(9000), Flow: flowing})
		short, long := w.dial(9000), w.dial(9000)
		for _, c := range []net.Conn{short, long} {
			fmt.Fprint(c, "x")
			full(c, make([]byte, 1))
		}
		time.AfterFunc(5*time.Second, func() { short.Close() })
		began := time.Now()
		ctx, cancel := context.WithTimeout(w.Context(), 10*time.Second)
		defer cancel()
		if err := w.front.Close(ctx); err == nil || !strings.Contains(err.Error(), "cut off 1 connections") {
			t.Errorf("got %v", err)
		}
		if took := time.Since(began); took != 10*time.Second {
			t.Errorf("it took %v", took)
		}
		synctest.Wait()
		if n := w.front.starters.waiting.Load(); n != 0 {
			t.Errorf("%d goroutines wait for more", n)
		}
		if err := w.front.Close(w.Context()); err != nil {
			t.Errorf("again: %v", err)
		}
	})
}

func TestAFlowThatPanicsCostsItsOwnConnection(t *testing.T) {
	inWorld(t, Config{}, func(w *world) {
		w.set(Door{Network: "tcp", Address: at(9000), Flow: func(c net.Conn, ended func()) {
			line, _ := bufio.NewReader(c).ReadString('\n')
			if line == "panic\n" {
				panic("in the flow")
			}
			flowing(c, ended)
		}})
		for range 3 {
			c := w.dial(9000)
			fmt.Fprintln(c, "panic")
			if _, err := c.Read(make([]byte, 1)); err == nil || err == io.EOF {
				t.Errorf("its client sees %v, not a reset", err)
			}
			c.Close()
		}
		c := w.dial(9000)
		defer c.Close()
		fmt.Fprint(c, "go on\nx")
		closeWrite(c)
		w.counted("front_panics_total", 3)
		w.counted("front_connections", 0)
	})
}

func TestAFlowFromALoadBalancerIsOfTheClientThatItNames(t *testing.T) {
	inWorld(t, Config{ProxyHeadersFrom: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}}, func(w *world) {
		w.set(Door{Network: "tcp", Address: at(9000), Flow: func(c net.Conn, ended func()) {
			fmt.Fprint(c, c.RemoteAddr())
			c.Close()
			ended()
		}})
		for header, want := range map[string]string{
			"PROXY TCP4 198.51.100.7 203.0.113.1 40000 9000\r\n": "198.51.100.7:40000",
			"PROXY TCP4 nobody\r\n":                              "",
		} {
			c := w.dial(9000)
			fmt.Fprint(c, header)
			got, _ := io.ReadAll(c)
			c.Close()
			if string(got) != want {
				t.Errorf("%q: got %q", header, got)
			}
		}
		w.counted("front_proxy_header_errors_total", 1)
		w.counted("front_connections", 0)
	})
}

func TestADoorMayBecomeOneOfFlows(t *testing.T) {
	inWorld(t, Config{}, func(w *world) {
		conns := Door{Network: "tcp", Address: at(9000), Conn: echo}
		flows := Door{Network: "tcp", Address: at(9000), Flow: flowing}
		for _, d := range []Door{conns, flows, conns} {
			w.set(d)
			c := w.dial(9000)
			fmt.Fprint(c, "x")
			if !full(c, make([]byte, 1)) {
				t.Error("no echo")
			}
			c.Close()
		}
		if n := w.listens.Load(); n != 1 {
			t.Errorf("it was opened %d times", n)
		}
		if err := w.front.Set([]Door{{Network: "tcp", Address: at(9001), Conn: echo, Flow: flowing}}); err == nil {
			t.Error("one with both is no door")
		}
	})
}
