package origin

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/perigee-net/perigee/cluster/health"
	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/view"
)

// evidence is what a plane told of its targets.
type evidence struct {
	mu   sync.Mutex
	told []string
}

// listening has the world's plane tell what it meets.
func listening(w *world) *evidence {
	e := new(evidence)
	w.plane.config.Evidence = func(key health.Key, client netip.Addr, failed bool, reason string) {
		e.mu.Lock()
		defer e.mu.Unlock()
		said := "passed"
		if failed {
			said = "failed: " + reason
		}
		if !failed && reason != "" {
			w.t.Errorf("what passed has a reason: %s", reason)
		}
		from := "somebody"
		if client.IsValid() {
			from = client.String()
		}
		e.told = append(e.told, fmt.Sprintf("%s by %s %s", key, from, said))
	}
	return e
}

// take is what was told since.
func (e *evidence) take() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	told := strings.Join(e.told, "; ")
	e.told = nil
	return told
}

// reset breaks a connection off.
func reset(c net.Conn) {
	c.(interface{ SetLinger(int) error }).SetLinger(0)
	c.Close()
}

func TestWhatRequestsMeetAtATargetIsEvidence(t *testing.T) {
	const one, person = "target/web/10.0.0.1:80 by ", "192.0.2.1 "
	for _, c := range []struct {
		name   string
		target func(w *world)
		send   func(w *world)
		want   string
	}{
		{"an answer", answering(200), nil, one + person + "passed"},
		{"not found is an answer", answering(404), nil, one + person + "passed"},
		{"a 5xx", answering(503), nil, one + person + "failed: traffic: answered 503"},
		{"nobody listens", func(*world) {}, nil, one + person + "failed: traffic: dial: connect: connection refused"},
		{"it resets before an answer", taking(reset), nil,
			one + person + "failed: traffic: broke off before it answered: read: connection reset by peer"},
		{"it ends before an answer", taking(func(c net.Conn) { c.Close() }), nil, one + person + "failed: traffic: broke off before it answered: EOF"},
		{"it breaks off within an answer", taking(func(c net.Conn) {
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nx")
			c.Close()
		}), nil, one + person + "passed"},
		{"the client leaves", answering(200, 5*time.Second), func(w *world) {
			c, err := w.person.Dial(w.t.Context(), "tcp", "10.0.0.100:80")
			if err != nil {
				w.t.Fatal(err)
			}
			io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
			time.Sleep(time.Second)
			c.Close()
		}, ""},
		{"the client breaks its body off", answering(200), func(w *world) {
			c, err := w.person.Dial(w.t.Context(), "tcp", "10.0.0.100:80")
			if err != nil {
				w.t.Fatal(err)
			}
			io.WriteString(c, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nx")
			time.Sleep(time.Second)
			reset(c)
		}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			inWorld(t, 1, func(t *testing.T, w *world) {
				e := listening(w)
				c.target(w)
				if c.send != nil {
					c.send(w)
				} else {
					res, err := w.client.Do(w.request("POST", "")) // which is not tried again
					if err == nil {
						io.Copy(io.Discard, res.Body)
						res.Body.Close()
					}
				}
				time.Sleep(10 * time.Second)
				if got := e.take(); got != c.want {
					t.Errorf("got  %s\nwant %s", got, c.want)
				}
			})
		})
	}
}

func answering(status int, after ...time.Duration) func(*world) {
	return func(w *world) {
		w.serve(w.targets[0], ":80", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			for _, d := range after {
				time.Sleep(d)
			}
			io.Copy(io.Discard, r.Body)
			rw.WriteHeader(status)
		}))
	}
}

// taking reads a request and does as it is told with the connection.
func taking(then func(net.Conn)) func(*world) {
	return func(w *world) {
		w.listen(w.targets[0], ":80", func(c net.Conn) {
			http.ReadRequest(bufio.NewReader(c))
			then(c)
		})
	}
}

func TestAConnectionThatWasKeptTooLongIsNoEvidence(t *testing.T) {
	inWorld(t, 1, func(t *testing.T, w *world) {
		e := listening(w)
		w.listen(w.targets[0], ":80", func(c net.Conn) { // answers once, and breaks off at the second request
			r := bufio.NewReader(c)
			http.ReadRequest(r)
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
			http.ReadRequest(r)
			c.Close()
		})
		w.ask("POST", "")
		if got := e.take(); !strings.HasSuffix(got, "passed") {
			t.Errorf("the first: %s", got)
		}
		if status, _ := w.ask("POST", "x"); status != 502 {
			t.Errorf("the second was answered %d", status)
		}
		if got := e.take(); got != "" {
			t.Errorf("the second: %s", got)
		}
	})
}

func TestTheViewerOfARequestFromAnEdgeNodeIsWhomThatNames(t *testing.T) {
	inWorld(t, 1, func(t *testing.T, w *world) {
		e := listening(w)
		answering(200)(w)
		inside, _ := w.plane.HTTP("web/80")
		w.serve(w.node, ":81", inside)
		for chain, want := range map[string]string{
			"": "somebody", "198.51.100.7": "198.51.100.7", "1.2.3.4, 198.51.100.8": "198.51.100.8",
			"1.2.3.4, unknown": "somebody", "2001:db8::1": "2001:db8::1", "1.2.3.4,::ffff:9.9.9.9": "9.9.9.9",
		} {
			r := w.request("GET", "")
			r.URL.Host = "10.0.0.100:81"
			if chain != "" {
				r.Header.Set("X-Forwarded-For", chain)
			}
			res, err := w.client.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			res.Body.Close()
			if got := e.take(); got != "target/web/10.0.0.1:80 by "+want+" passed" {
				t.Errorf("%q: %s", chain, got)
			}
		}
	})
}

func TestWhatFlowsMeetAtATargetIsEvidence(t *testing.T) {
	const one = "target/web/10.0.0.1:80 by 192.0.2.1 "
	for _, c := range []struct {
		name   string
		target func(net.Conn) // nil: nobody listens
		client func(net.Conn)
		want   string
	}{
		{"it answers", func(c net.Conn) { io.WriteString(c, "hello"); c.Close() }, nil, one + "passed"},
		{"it ends without a byte", func(c net.Conn) { c.Close() }, nil, one + "passed"},
		{"nobody listens", nil, nil, one + "failed: traffic: dial: connect: connection refused"},
		{"it resets", reset, nil, one + "failed: traffic: broke off before it sent a byte: read: connection reset by peer"},
		{"it resets after a byte", func(c net.Conn) { io.WriteString(c, "x"); time.Sleep(time.Second / 10); reset(c) }, nil, one + "passed"},
		{"it resets after a while", func(c net.Conn) { time.Sleep(5 * time.Second); reset(c) }, nil, one + "passed"},
		{"the client resets", func(c net.Conn) { io.Copy(io.Discard, c); c.Close() }, reset, ""},
		{"it stands", func(c net.Conn) { time.Sleep(20 * time.Second); c.Close() }, nil, one + "passed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			inWorld(t, 1, func(t *testing.T, w *world) {
				e := listening(w)
				if c.target != nil {
					w.listen(w.targets[0], ":80", c.target)
				}
				conn, err := w.person.Dial(t.Context(), "tcp", "10.0.0.100:9000")
				if err != nil {
					t.Fatal(err)
				}
				if c.client != nil {
					time.Sleep(time.Second / 2)
					c.client(conn)
				}
				time.Sleep(10 * time.Second)
				conn.Close()
				time.Sleep(30 * time.Second)
				if got := e.take(); got != c.want {
					t.Errorf("got  %s\nwant %s", got, c.want)
				}
			})
		})
	}
}

func TestASilentTargetIsEvidenceOnceAnEdgeNodeHasWaited(t *testing.T) {
	for given, want := range map[time.Duration]string{
		time.Second:  "target/web/10.0.0.1:80 by 198.51.100.7 failed: traffic: dial: context deadline exceeded",
		patience:     "target/web/10.0.0.1:80 by 198.51.100.7 failed: traffic: dial: context deadline exceeded",
		patience - 1: "",
	} {
		inWorld(t, 1, func(t *testing.T, w *world) {
			e := listening(w)
			w.net.CutOff("t1")
			ctx, cancel := context.WithTimeout(t.Context(), given)
			defer cancel()
			w.plane.serveFlow(ctx, "targetGroup/web", netip.MustParseAddrPort("198.51.100.7:40000"), nil, func(string) {})
			if got := e.take(); got != want && !strings.HasPrefix(got, want) || want == "" && got != "" {
				t.Errorf("after %v: %s", given, got)
			}
		})
	}
}

// Who is called off as another has answered is not thereby found at fault.
func TestADialThatIsCalledOffIsEvidenceOnlyAfterLong(t *testing.T) {
	for after, want := range map[time.Duration]bool{patience: false, 450 * time.Millisecond: false, longPatience - 1: false, longPatience: true} {
		inWorld(t, 1, func(t *testing.T, w *world) {
			e := listening(w)
			w.net.CutOff("t1")
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			time.AfterFunc(after, cancel)
			w.plane.serveFlow(ctx, "targetGroup/web", netip.MustParseAddrPort("198.51.100.7:40000"), nil, func(string) {})
			if got := e.take(); strings.HasPrefix(got, "target/web/10.0.0.1:80 by 198.51.100.7 failed: traffic: dial: ") != want || !want && got != "" {
				t.Errorf("after %v: %s", after, got)
			}
		})
	}
}

// anAccelerator is one whose endpoint in this region is the first target's machine, by its address.
func anAccelerator(w *world) *spec.Accelerator {
	yes, dial, weight := true, 100.0, 128
	return &spec.Accelerator{
		Name: "game", Enabled: &yes,
		Listeners: []spec.AcceleratorListener{{
			Protocol: spec.TCP, PortRanges: []spec.PortRange{{FromPort: 5000, ToPort: 5010}, {FromPort: 7000}},
			EndpointGroups: []spec.EndpointGroup{
				{
					Region: "here", TrafficDial: &dial, HealthCheckPort: 5000, Endpoints: []spec.Endpoint{{Address: w.targets[0].Addr(), Weight: &weight}},
					PortOverrides: []spec.PortOverride{{ListenerPort: 5001, EndpointPort: 9001}},
				},
				{Region: "there", TrafficDial: &dial, HealthCheckPort: 5000, Endpoints: []spec.Endpoint{{Address: w.targets[1].Addr(), Weight: &weight}}},
			},
		}},
	}
}

func TestAnEndpointIsDialledOnlyWhereItsAcceleratorNamesIt(t *testing.T) {
	for _, c := range []struct {
		resource, refused, told string
	}{
		{"endpoint/game/10.0.0.1:5005", "", "passed"},
		{"endpoint/game/10.0.0.1:7000", "", "passed"},
		{"endpoint/game/10.0.0.1:5000", "connection refused", "failed: traffic: dial: connect: connection refused"},
		{"endpoint/game/10.0.0.1:9001", "", "passed"},
		{"endpoint/game/10.0.0.1:5001", "is no endpoint", ""}, // flows to it go to 9001
		{"endpoint/game/10.0.0.1:80", "10.0.0.1:80 is no endpoint of accelerator game in this region", ""},
		{"endpoint/game/10.0.0.2:5005", "is no endpoint", ""}, // of another region
		{"endpoint/game/127.0.0.1:5005", "is no endpoint", ""},
		{"endpoint/none/10.0.0.1:5005", "is no endpoint", ""},
		{"endpoint/game/10.0.0.1", "endpoint of accelerator game: ", ""},
		{"endpoint/game", "endpoint of accelerator game: ", ""},
		{"endpoint/", "endpoint of accelerator : ", ""},
	} {
		inWorld(t, 2, func(t *testing.T, w *world) {
			e := listening(w)
			s := w.spec()
			s.Accelerators = map[string]*spec.Accelerator{"game": anAccelerator(w)}
			w.apply(s)
			for _, port := range []string{":5005", ":7000", ":9001"} {
				w.listen(w.targets[0], port, func(c net.Conn) { io.Copy(c, c); c.Close() })
			}
			w.listen(w.targets[1], ":5005", func(c net.Conn) { c.Close() })
			near, far := net.Pipe()
			var serving sync.WaitGroup
			refused := ""
			serving.Go(func() {
				defer near.Close()
				w.plane.serveFlow(t.Context(), c.resource, netip.MustParseAddrPort("198.51.100.7:40000"),
					func() net.Conn { return far }, func(reason string) { refused = reason })
			})
			if c.refused == "" {
				io.WriteString(near, "x")
				if b := make([]byte, 1); !readFull(near, b) || b[0] != 'x' {
					t.Errorf("%s: got %q", c.resource, b)
				}
				if n := w.plane.Flows("endpoint/game/here/10.0.0.1:5000"); n != 1 {
					t.Errorf("%s: %d flows", c.resource, n)
				}
				near.Close()
			}
			serving.Wait()
			if !strings.Contains(refused, c.refused) || (refused == "") != (c.refused == "") {
				t.Errorf("%s: refused by %q, want %q", c.resource, refused, c.refused)
			}
			want := ""
			if c.told != "" {
				want = "endpoint/game/here/10.0.0.1:5000 by 198.51.100.7 " + c.told
			}
			if got := e.take(); got != want {
				t.Errorf("%s: told %q, want %q", c.resource, got, want)
			}
		})
	}
}

func TestOfASubnetOnlyWhatIsAllowedIsDialled(t *testing.T) {
	a := &spec.Accelerator{Name: "rooms", Type: spec.CustomRoutingAccelerator, Listeners: []spec.AcceleratorListener{{
		Protocol: spec.TCP, PortRanges: []spec.PortRange{{FromPort: 5000, ToPort: 5031}},
		EndpointGroups: []spec.EndpointGroup{{Region: "here", DestinationConfigurations: []spec.PortRange{{FromPort: 81, ToPort: 82}}, Endpoints: []spec.Endpoint{{
			Subnet: netip.MustParsePrefix("10.0.0.0/29"), AllowedTraffic: []spec.CustomRoutingTraffic{{
				DestinationAddresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}, DestinationPorts: []int{81},
			}},
		}}}},
	}}}
	for at, want := range map[string]bool{"10.0.0.1:81": true, "10.0.0.1:82": false, "10.0.0.2:81": false, "10.0.0.1:5000": false, "10.0.1.1:81": false} {
		key, ok := endpointKey(a, spec.TCP, "here", netip.MustParseAddrPort(at))
		if ok != want || ok && key != health.EndpointKey("rooms", "here", netip.MustParseAddrPort(at)) {
			t.Errorf("%s: got %q, %v", at, key, ok)
		}
		if _, ok := endpointKey(a, spec.TCP, "there", netip.MustParseAddrPort(at)); ok {
			t.Errorf("%s is dialled from another region", at)
		}
	}
}

func TestFlowsOfALoadBalancerEndWithTheHealthOfTheirTarget(t *testing.T) {
	inWorld(t, 2, func(t *testing.T, w *world) {
		for _, target := range w.targets {
			w.listen(target, ":80", func(c net.Conn) { io.Copy(c, c); c.Close() })
		}
		echoes := func(c net.Conn) bool {
			_, err := io.WriteString(c, "x")
			return err == nil && readFull(c, make([]byte, 1))
		}
		one, two := health.TargetKey("web", w.addrs()[0]), health.TargetKey("web", w.addrs()[1])
		var flows [4]net.Conn // by turns to the first and the second target
		for i := range flows {
			var err error
			if flows[i], err = w.person.Dial(t.Context(), "tcp", "10.0.0.100:9000"); err != nil || !echoes(flows[i]) {
				t.Fatal(err)
			}
			defer flows[i].Close()
		}
		near, far := net.Pipe() // of an accelerator, to the first
		var serving sync.WaitGroup
		serving.Go(func() {
			w.plane.serveFlow(t.Context(), "targetGroup/web", netip.AddrPort{}, func() net.Conn { return far }, func(string) {})
		})
		if !echoes(near) {
			t.Fatal("the accelerator's flow does not come through")
		}
		if w.plane.Flows(one) != 3 || w.plane.Flows(two) != 2 {
			t.Fatalf("%d and %d flows", w.plane.Flows(one), w.plane.Flows(two))
		}
		w.counted("origin_flows", 5)

		if n := w.plane.Terminate(one); n != 0 {
			t.Errorf("%d flows of a healthy target were reset", n)
		}
		w.healthy()
		if n := w.plane.Terminate(one); n != 0 {
			t.Errorf("%d flows were reset though all targets take traffic", n)
		}
		w.healthy(w.addrs()[1])
		if n := w.plane.Terminate(one); n != 2 {
			t.Errorf("%d flows were reset, want 2", n)
		}
		for i, c := range flows {
			if i%2 == 1 {
				if !echoes(c) {
					t.Errorf("flow %d, to the healthy target, has ended", i)
				}
			} else if _, err := c.Read(make([]byte, 1)); err == nil || err == io.EOF {
				t.Errorf("flow %d: got %v, want a reset", i, err)
			}
		}
		if !echoes(near) {
			t.Error("the accelerator's flow has ended")
		}
		s := *w.plane.table.Load().spec
		s.Accelerators = map[string]*spec.Accelerator{"game": {Listeners: []spec.AcceleratorListener{{EndpointGroups: []spec.EndpointGroup{{
			Region: s.TargetGroups["web"].Region, Endpoints: []spec.Endpoint{{TargetGroup: "web"}}, UnhealthyConnectionTermination: true,
		}}}}}}
		if err := w.plane.Apply(&s); err != nil {
			t.Fatal(err)
		}
		if n := w.plane.Terminate(one); n != 1 {
			t.Errorf("%d flows were reset, want that of the accelerator that terminates", n)
		}
		if _, err := near.Read(make([]byte, 1)); err == nil {
			t.Error("the accelerator's flow goes on")
		}
		near.Close()
		serving.Wait()
		synctest.Wait()
		if w.plane.Flows(one) != 0 || w.plane.Terminate("check/web") != 0 || w.plane.Terminate("target/none/x") != 0 {
			t.Error("flows that are not there")
		}
		w.counted("origin_flows_terminated_total", 3)
	})
}

func TestTargetsThatAreNotCheckedAllTakeTraffic(t *testing.T) {
	inWorld(t, 2, func(t *testing.T, w *world) {
		w.names()
		s, no := w.spec(), false
		s.TargetGroups["web"].HealthCheck.Enabled = &no
		w.apply(s)
		w.view.Store(&view.View{})
		seen := map[string]bool{}
		for range 4 {
			_, name := w.ask("GET", "")
			seen[name] = true
		}
		if len(seen) != 2 {
			t.Errorf("only %v took requests", seen)
		}
	})
}

// What this node lacks is no evidence against a target, and the next one is tried.
func TestWhatThisNodeLacksIsNoEvidence(t *testing.T) {
	for _, lack := range []error{syscall.EADDRNOTAVAIL, syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ENOSPC} {
		inWorld(t, 2, func(t *testing.T, w *world) {
			e := listening(w)
			w.listen(w.targets[0], ":80", func(c net.Conn) { c.Close() })
			w.listen(w.targets[1], ":80", func(c net.Conn) { c.Close() })
			lacking := true
			dial := func(ctx context.Context, network, address string) (net.Conn, error) {
				if lacking && address == "10.0.0.1:80" {
					return nil, &net.OpError{Op: "dial", Net: network, Err: os.NewSyscallError("connect", lack)}
				}
				return w.node.Dial(ctx, network, address)
			}
			w.plane.config.Dial, w.plane.config.DialFlow = dial, dial
			f, err := w.plane.TakeFlow(t.Context(), "targetGroup/web", netip.MustParseAddrPort("192.0.2.1:1"))
			if err != nil || f.RemoteAddr().String() != "10.0.0.2:80" {
				t.Fatalf("%v: taken by %v, %v", lack, f, err)
			}
			f.Close()
			if told := e.take(); told != "" {
				t.Errorf("%v: told %s", lack, told)
			}
			w.counted("origin_target_connect_faults_total", 1)
			w.counted("origin_target_connect_errors_total", 0)
			lacking = false
		})
	}
}

// A flow that this node itself ends before its target has sent a byte says nothing of the target.
func TestWhatThisNodeEndsIsNoEvidence(t *testing.T) {
	for _, c := range []struct {
		name string
		ends func(w *world, at netip.AddrPort)
	}{
		{"by its target's health", func(w *world, at netip.AddrPort) {
			w.healthy(slices.DeleteFunc(w.addrs(), func(a netip.AddrPort) bool { return a == at })...)
			if n := w.plane.Terminate(health.TargetKey("web", at)); n != 1 {
				w.t.Errorf("%d flows were ended", n)
			}
		}},
		{"as its target has left", func(w *world, at netip.AddrPort) {
			traffic := w.plane.table.Load().groups.Get("web").traffic
			traffic.expire("web", at, traffic.lease(at))
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			inWorld(t, 2, func(t *testing.T, w *world) {
				e := listening(w)
				took := make(chan netip.AddrPort, 1)
				for i, at := range w.addrs() {
					w.listen(w.targets[i], ":80", func(c net.Conn) {
						took <- at
						io.Copy(io.Discard, c)
						c.Close()
					})
				}
				conn, err := w.person.Dial(t.Context(), "tcp", "10.0.0.100:9000")
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				at := <-took
				time.Sleep(settled / 2)
				c.ends(w, at)
				if _, err := conn.Read(make([]byte, 1)); err == nil || err == io.EOF {
					t.Errorf("the client got %v, want a reset", err)
				}
				time.Sleep(2 * settled)
				if got := e.take(); got != "" {
					t.Errorf("told %s", got)
				}
			})
		})
	}
}
