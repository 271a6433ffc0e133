package front

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"
)

func TestADoorForDatagramsIsServedUntilItCloses(t *testing.T) {
	inWorld(t, Config{}, func(w *world) {
		served := make(chan string, 8)
		door := func(name string) Door {
			return Door{Network: "udp", Address: netip.MustParseAddrPort("203.0.113.1:53"), Anycast: name == "anycast", Packets: func(c net.PacketConn) error {
				buf := make([]byte, 100)
				for {
					n, from, err := c.ReadFrom(buf)
					if err != nil {
						served <- name + " has ended"
						return nil
					}
					if string(buf[:n]) == "end" {
						c.Close()
						return nil
					}
					c.WriteTo(append([]byte(name+" "), buf[:n]...), from)
				}
			}}
		}
		c, err := w.person.Dial(w.Context(), "udp", "203.0.113.1:53")
		if err != nil {
			w.Fatal(err)
		}
		asks := func(p string) string {
			c.Write([]byte(p))
			c.SetReadDeadline(time.Now().Add(time.Second))
			buf := make([]byte, 100)
			n, _ := c.Read(buf)
			return string(buf[:n])
		}
		tcp := Door{Network: "tcp", Address: netip.MustParseAddrPort("203.0.113.1:53"), Conn: echo}
		w.set(door("one"), tcp) // the ports of TCP are apart
		if got := asks("x"); got != "one x" || !w.front.IsOpen("udp", door("").Address) || !w.front.IsOpen("tcp", tcp.Address) {
			t.Errorf("got %q", got)
		}
		w.set(door("two"), tcp)
		if got := asks("x"); got != "one x" {
			t.Errorf("a door that stands: %q", got)
		}
		asks("end")
		synctest.Wait()
		if w.front.IsOpen("udp", door("").Address) {
			t.Error("a door that is served no more is open")
		}
		w.set(door("three"), tcp)
		if got := asks("x"); got != "three x" {
			t.Errorf("opened anew: %q", got)
		}
		w.set(door("anycast"), tcp)
		if got := asks("x"); got != "anycast x" || <-served != "three has ended" {
			t.Errorf("changed: %q", got)
		}
		w.set(tcp)
		if got := asks("x"); got != "" || <-served != "anycast has ended" || w.front.IsOpen("udp", door("").Address) {
			t.Errorf("closed: %q", got)
		}
		w.set(door("last"))
		for name, bad := range map[string]Door{
			"TCP":             {Network: "tcp", Packets: door("").Packets},
			"and a handler":   {Network: "udp", Packets: door("").Packets, Handler: says("x")},
			"no service":      {Network: "udp"},
			"a taken address": {Network: "udp", Address: netip.MustParseAddrPort("192.0.2.1:53"), Packets: door("").Packets},
		} {
			if err := w.front.Set([]Door{door("last"), bad}); err == nil {
				t.Errorf("%s: it is taken", name)
			}
		}
	})
}

// What comes by doors for datagrams may finish before they are closed, as long as the front's own time.
func TestDoorsForDatagramsCloseWhenWhatCameIsFinished(t *testing.T) {
	for _, c := range []struct{ takes, want time.Duration }{{2 * time.Second, 2 * time.Second}, {time.Minute, 10 * time.Second}} {
		inWorld(t, Config{FinishPackets: func(ctx context.Context) {
			select {
			case <-ctx.Done():
			case <-time.After(c.takes):
			}
		}}, func(w *world) {
			var began time.Time
			ended := make(chan time.Duration, 1)
			w.set(Door{Network: "udp", Address: netip.MustParseAddrPort("203.0.113.1:53"), Packets: func(p net.PacketConn) error {
				p.ReadFrom(make([]byte, 1))
				ended <- time.Since(began)
				return nil
			}})
			ctx, cancel := context.WithTimeout(w.Context(), 10*time.Second)
			defer cancel()
			began = time.Now()
			if err := w.front.Close(ctx); err != nil {
				t.Error(err)
			}
			if got := <-ended; got != c.want {
				t.Errorf("the door was closed after %v, want %v", got, c.want)
			}
		})
	}
}
