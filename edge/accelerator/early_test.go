package accelerator

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/perigee-net/perigee/cluster/backbone"
	"github.com/perigee-net/perigee/cluster/identity"
	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/trace"
	"github.com/perigee-net/perigee/cluster/view"
	"github.com/perigee-net/perigee/origin/relay"
	"github.com/perigee-net/perigee/testbed/memnet"
)

// earlyWorld is a bench whose flows end at nodes over a backbone, where they are echoed.
type earlyWorld struct {
	*bench
	far   time.Duration // of the edge from each node, both ways
	lasts bool
	nodes map[string]*backbone.Backbone
	view  atomic.Pointer[view.View]

	planes []*Plane // that have served

	mu     sync.Mutex
	does   map[string]takes
	chance *rand.Rand // nil: does says how flows are taken
	came   []*cameEarly
}

// takes is how a node takes flows.
type takes struct {
	after   time.Duration // until its target has answered
	refuses bool
	deaf    bool   // to that it was called off
	greets  string // what its target says first
}

// cameEarly is a flow as its target had it.
type cameEarly struct {
	node   string
	client netip.AddrPort
	text   []byte
	err    error // nil: its client has ended it
}

// inEarlyWorld runs a test with nodes icn1, iad1 and sfo1, of which the edge is that far away, both ways, and which has it serve networks one after the other. Flows end at those that a network names,
// and sfo1 carries them on.
func inEarlyWorld(t *testing.T, far time.Duration, lasts bool, test func(w *earlyWorld)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &earlyWorld{bench: newBench(t, oneWay), far: far, lasts: lasts, nodes: map[string]*backbone.Backbone{}, does: map[string]takes{}}
		defer w.in.Close()
		authority, err := identity.NewAuthority("test", time.Now())
		if err != nil {
			t.Fatal(err)
		}
		all := []string{"self", "iad1", "icn1", "sfo1"}
		peers := map[string]netip.AddrPort{}
		for i, name := range all {
			host := w.edge
			if name != "self" {
				host = w.in.Host(name, spec.Location{}, netip.AddrFrom4([4]byte{192, 0, 2, byte(20 + i)}))
				w.in.Link("edge", name, memnet.Path{Delay: far / 2})
			}
			peers[name] = netip.AddrPortFrom(host.Addr(), 7947)
			w.open(name, authority, host, peers[name])
		}
		for _, to := range []string{"iad1", "icn1"} {
			w.in.Link("sfo1", to, memnet.Path{Delay: far / 2})
		}
		for _, b := range w.nodes {
			b.Keep(peers)
		}
		time.Sleep(5 * time.Second)
		between := New(Config{View: w.view.Load, Dial: w.nodes["sfo1"].Dial})
		w.nodes["sfo1"].HandleThrough(detourService, func(in *backbone.Incoming) { between.StartDetour(in, in.Outlast()) })
		test(w)
		w.end()
		time.Sleep(12 * time.Second) // flows that were called off are over at both their ends
		for _, name := range all {
			for _, counter := range []string{"backbone_lasting_flows", "backbone_lasting_kept_bytes", "backbone_lasting_malformed_total"} {
				if n := w.nodes[name].Counters()[counter]; n != 0 {
					w.Errorf("%s: %s is %d when all is over", name, counter, n)
				}
			}
		}
		for i, p := range w.planes {
			if n := p.Counters()["accelerator_flows"]; n != 0 {
				w.Errorf("%d flows of the network served as number %d are left", n, i)
			}
		}
		for _, name := range all {
			w.nodes[name].Close()
		}
	})
}

// serves has the edge serve a network as one that has served nothing yet, by a detour where that is named. What was served before is to be over.
func (w *earlyWorld) serves(name string, n network, detour string, change func(*spec.AcceleratorListener)) {
	w.Helper()
	w.Log(name)
	s, v, a := n.build()
	for name := range v.RTT {
		v.RTT[name] = w.far
	}
	v.RTT["icn1"] -= time.Millisecond // it is asked first
	v.Members = append(v.Members, view.Member{Name: "sfo1"})
	slices.SortFunc(v.Members, func(a, b view.Member) int { return strings.Compare(a.Name, b.Name) })
	for i := range v.Members {
		v.Members[i].Lasting, v.Members[i].Timed = w.lasts, true
	}
	if detour != "" {
		v.Detour = by(map[string]view.Detour{"icn1": {By: detour, RTT: 2 * w.far, Direct: 3 * w.far}})
	}
	w.view.Store(v)
	w.plane = New(Config{View: w.view.Load, Dial: w.nodes["self"].Dial, DialLasting: w.nodes["self"].DialLasting})
	if change != nil {
		change(&a.Listeners[0])
	}
	if err := w.plane.Apply(s); err != nil {
		w.Fatal(err)
	}
	w.mu.Lock()
	w.came, w.does, w.chance = nil, map[string]takes{}, nil
	w.mu.Unlock()
	w.planes = append(w.planes, w.plane)
}

func (w *earlyWorld) open(name string, authority *identity.Authority, host *memnet.Host, at netip.AddrPort) {
	w.Helper()
	id, err := authority.Node(identity.Claim{Name: name, Region: "r", POP: "p"}, 1, identity.Keys{Cluster: identity.NewKey()}, time.Now())
	if err != nil {
		w.Fatal(err)
	}
	self := identity.NewGuard(id, identity.Trust{Authorities: [][]byte{authority.Certificate()}}, time.Now)
	conn, err := host.ListenPacket("udp", at.String())
	if err != nil {
		w.Fatal(err)
	}
	b, err := backbone.Open(backbone.Config{
		Self: name, PacketConn: conn, ServerTLS: func() *tls.Config { return self.ServerTLS(backbone.ALPN) }, PeerName: identity.PeerName,
		ClientTLS: func(node string) *tls.Config { return self.ClientTLS(node, backbone.ALPN) },
	})
	if err != nil {
		w.Fatal(err)
	}
	w.nodes[name] = b
	b.Handle(flowService, func(in *backbone.Incoming) { w.takes(name, in) })
}

// takes is a target behind a node: it echoes.
func (w *earlyWorld) takes(name string, in *backbone.Incoming) {
	w.mu.Lock()
	does := w.does[name]
	if w.chance != nil {
		does = takes{after: time.Duration(w.chance.Int64N(int64(400 * time.Millisecond))), refuses: w.chance.IntN(4) == 0, deaf: w.chance.IntN(2) == 0}
	}
	w.mu.Unlock()
	if does.deaf {
		time.Sleep(does.after)
	} else {
		answer := time.NewTimer(does.after)
		defer answer.Stop()
		select {
		case <-answer.C:
		case <-in.Context().Done():
		}
	}
	if does.refuses {
		in.Refuse("it is told to")
		return
	}
	c := in.Accept()
	io.WriteString(c, does.greets)
	one := &cameEarly{node: name, client: in.Client}
	var err error
	for room := make([]byte, 4096); err == nil; {
		var n int
		n, err = c.Read(room)
		w.mu.Lock()
		if one.text = append(one.text, room[:n]...); n > 0 && len(one.text) == n {
			w.came = append(w.came, one)
		}
		w.mu.Unlock()
		if n > 0 {
			c.Write(room[:n])
		}
	}
	if err != io.EOF {
		w.mu.Lock()
		one.err = err
		w.mu.Unlock()
		relay.Abort(c)
		return
	}
	c.(interface{ CloseWrite() error }).CloseWrite()
	c.Close()
}

// had is what nodes had of flows with bytes, in words.
func (w *earlyWorld) had() (had []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, one := range w.came {
		had = append(had, fmt.Sprintf("%s %d %v", one.node, len(one.text), one.err == nil))
	}
	return had
}

// asks sends a question and returns how long it takes from when the client begins to connect until the first byte of what follows a greeting.
func (w *earlyWorld) asks(question []byte, greeting string) time.Duration {
	w.Helper()
	began := time.Now()
	c := w.dial()
	defer c.Close()
	if _, err := c.Write(question); err != nil {
		w.Error(err)
	}
	answer := make([]byte, len(greeting)+len(question))
	if _, err := io.ReadFull(c, answer[:len(greeting)+1]); err != nil {
		w.Errorf("the first byte: %v", err)
		return 0
	}
	took := time.Since(began)
	if _, err := io.ReadFull(c, answer[len(greeting)+1:]); err != nil || string(answer) != greeting+string(question) {
		w.Errorf("the answer: %v", err)
	}
	c.CloseWrite()
	if rest, err := io.ReadAll(c); len(rest) > 0 || err != nil {
		w.Errorf("behind it: %q, %v", rest, err)
	}
	return took
}

var (
	oneWay  = network{groups: []testGroup{up("icn", 0, 100)}}
	twoWays = network{groups: []testGroup{up("icn", 0, 100), up("iad", 0, 100)}}
)

func fastOpens(l *spec.AcceleratorListener) { l.FastOpen = true }

// Where nothing can be done twice, or that does no harm, a client waits for one round trip of the backbone and not for two.
func TestTheFirstBytesTravelWithTheOpening(t *testing.T) {
	const far, near = 150 * time.Millisecond, 10 * time.Millisecond // round trips, of the backbone and of the client
	hello, text := helloOf(t, &tls.Config{ServerName: "www.example.com"}), []byte("GET / HTTP/1.1\r\n\r\n")
	cases := []struct {
		name     string
		network  network
		change   func(*spec.AcceleratorListener)
		question []byte
		greeting string
		by       string
		early    bool
	}{
		{"nobody else could be asked", oneWay, nil, text, "", "", true},
		{"a ClientHello", twoWays, nil, hello, "", "", true},
		{"the listener says so", twoWays, fastOpens, text, "", "", true},
		{"another might be asked, too", twoWays, nil, text, "", "", false},
		{"early data", twoWays, nil, withExtension(hello, tlsEarlyData, nil), "", "", false},
		{"a ClientHello by a detour", oneWay, nil, hello, "", "sfo1", true},
		{"the listener says so, by a detour", oneWay, fastOpens, text, "", "sfo1", true},
		{"a detour that might be left", oneWay, nil, text, "", "sfo1", false},
		{"the target speaks first", oneWay, nil, text, "220 ready\r\n", "", true},
	}
	for _, lasts := range []bool{true, false} {
		t.Run(fmt.Sprintf("lasting %v", lasts), func(t *testing.T) {
			inEarlyWorld(t, far, lasts, func(w *earlyWorld) {
				// Links are warmed behind the first flow on them, and what is dialled meanwhile may wait for that.
				for _, by := range []string{"", "sfo1"} {
					w.serves("a first flow", oneWay, by, nil)
					w.asks(text, "")
				}
				time.Sleep(12 * time.Second)
				for _, c := range cases {
					w.serves(c.name, c.network, c.by, c.change)
					w.does["icn1"] = takes{greets: c.greeting}
					legs := time.Duration(1)
					if c.by != "" {
						legs = 2
					}
					want := 2*near + 2*legs*far
					if c.early {
						want = 2*near + legs*far
					}
					took := w.asks(c.question, c.greeting)
					if t.Log(took); took < want-near-time.Millisecond || took > want+time.Millisecond {
						t.Errorf("it took %v, want at most %v", took, want)
					}
					time.Sleep(time.Second)
					counts := map[string]uint64{"accelerator_flows_early_total": 0, "accelerator_processed_bytes_in_total": uint64(len(c.question)),
						"accelerator_processed_bytes_out_total": uint64(len(c.greeting) + len(c.question)), "accelerator_flows_broken_total": 0}
					if c.early {
						counts["accelerator_flows_early_total"] = 1
					}
					for name, n := range counts {
						if got := w.plane.Counters()[name]; got != n {
							w.Errorf("%s is %d, want %d", name, got, n)
						}
					}
				}
			})
		})
	}
}

// A connection from the client to the endpoint itself takes its own round trip and one more, so a flow is sooner there by its POP.
func TestAFlowIsSoonerThanAConnectionOfTheClients(t *testing.T) {
	inEarlyWorld(t, 150*time.Millisecond, true, func(w *earlyWorld) {
		endpoint := w.in.Host("endpoint", spec.Location{}, netip.MustParseAddr("192.0.2.40"))
		w.in.Link("client", "endpoint", memnet.Path{Delay: 155 * time.Millisecond / 2})
		w.listen(endpoint, "192.0.2.40:80", func(c net.Conn) {
			io.Copy(c, c)
			c.Close()
		})
		w.serves("one way", oneWay, "", nil)
		began := time.Now()
		c, err := w.client.Dial(w.Context(), "tcp", "192.0.2.40:80")
		if err != nil {
			w.Fatal(err)
		}
		io.WriteString(c, "x")
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			w.Fatal(err)
		}
		direct, flow := time.Since(began), w.asks([]byte("x"), "")
		c.Close()
		if w.Logf("%v directly, %v by the POP", direct, flow); flow*10 > direct*6 {
			w.Error("it is not")
		}
	})
}

// Who is asked beside the first is given what he was, where that may be; who has not got the flow has it end in a reset, and where nothing may be done twice nobody but its taker hears anything.
func TestWhoIsAskedBesideTheFirstIsGivenTheSame(t *testing.T) {
	const far = 100 * time.Millisecond
	hello, text := helloOf(t, &tls.Config{ServerName: "www.example.com"}), bytes.Repeat([]byte("x"), 40_000)
	slow := takes{after: 220 * time.Millisecond} // it hears that it was called off when it has read
	cases := []struct {
		name     string
		change   func(*spec.AcceleratorListener)
		question []byte
		icn, iad takes
		want     []string
	}{
		{"a ClientHello", nil, hello, slow, takes{}, []string{fmt.Sprintf("iad1 %d true", len(hello)), fmt.Sprintf("icn1 %d false", len(hello))}},
		{"fastOpen", fastOpens, text, slow, takes{}, []string{"iad1 40000 true", fmt.Sprintf("icn1 %d false", maxEarly)}},
		{"neither", nil, text, slow, takes{}, []string{"iad1 40000 true"}},
		{"a refused ClientHello", nil, hello, takes{refuses: true}, takes{}, []string{fmt.Sprintf("iad1 %d true", len(hello))}},
		{"refused with fastOpen", fastOpens, text, takes{refuses: true, after: 50 * time.Millisecond}, takes{}, []string{"iad1 40000 true"}},
		{"the first is the quicker one after all", fastOpens, text[:5000], takes{after: 190 * time.Millisecond}, takes{},
			[]string{"icn1 5000 true", "iad1 5000 false"}},
	}
	for _, lasts := range []bool{true, false} {
		t.Run(fmt.Sprintf("lasting %v", lasts), func(t *testing.T) {
			inEarlyWorld(t, far, lasts, func(w *earlyWorld) {
				for _, c := range cases {
					w.serves(c.name, twoWays, "", c.change)
					w.does["icn1"], w.does["iad1"] = c.icn, c.iad
					w.asks(c.question, "")
					time.Sleep(5 * time.Second)
					got, want := w.had(), slices.Clone(c.want)
					slices.Sort(got)
					slices.Sort(want)
					if !slices.Equal(got, want) {
						t.Errorf("they had %q, want %q", got, want)
					}
				}
			})
		})
	}
}

// It is told what travels with the opening of a flow, and why.
func TestWhatTravelsWithTheOpeningIsExplained(t *testing.T) {
	for _, c := range []struct {
		name    string
		network network
		change  func(*spec.AcceleratorListener)
		by      string
		want    string
	}{
		{"one way", oneWay, nil, "", "what the client says travels with the opening of the flow: nobody else could be given it, too"},
		{"two ways", twoWays, nil, "", "a ClientHello of TLS without early data travels with the opening of the flow, and all else once it is taken: another may be asked beside the first"},
		{"a detour", oneWay, nil, "sfo1", "a ClientHello of TLS without early data travels with the opening of the flow, and all else once it is taken: another may be asked beside the first"},
		{"fastOpen", twoWays, fastOpens, "", "what the client says travels with the opening of the flow: the listener has fastOpen"},
		{"here", network{groups: []testGroup{{region: "icn", nodes: []string{"self"}, dial: 100, endpoints: []testEndpoint{{name: "icn", weight: 128}}}}}, nil, "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, v, a := c.network.build()
			if c.change != nil {
				c.change(&a.Listeners[0])
			}
			if c.by != "" {
				v.Detour = by(map[string]view.Detour{"icn1": {By: c.by, RTT: time.Millisecond, Direct: time.Second}})
			}
			p := New(Config{View: func() *view.View { return v }, Take: func(context.Context, string, netip.AddrPort) (net.Conn, error) { return nil, io.EOF }})
			if err := p.Apply(s); err != nil {
				t.Fatal(err)
			}
			tr := new(trace.Trace)
			if _, err := p.Explain(spec.TCP, local, netip.MustParseAddr("203.0.113.9"), tr); err != nil {
				t.Fatal(err)
			}
			if got := tr.String(); c.want != "" && !strings.Contains(got, c.want) || c.want == "" && strings.Contains(got, "travels") {
				t.Errorf("it says\n%s", got)
			}
		})
	}
}

// faulty is a client whose reading panics.
type faulty struct{ net.Conn }

func (faulty) Read([]byte) (int, error) { panic("a fault") }

// A panic of who reads a client early is one of who has the flow be started.
func TestAPanicOfAnEarlyReadEndsItsFlowAlone(t *testing.T) {
	inEarlyWorld(t, 20*time.Millisecond, true, func(w *earlyWorld) {
		w.serves("one way", oneWay, "", nil)
		near, client := net.Pipe()
		if got := w.started(faulty{near}); got == nil || !strings.Contains(fmt.Sprint(got), "a fault") {
			t.Errorf("recovered %v", got)
		}
		near.Close()
		client.Close()
	})
}

// What is read of a client that nobody has taken is bounded.
func TestWhatIsReadBeforeAnAnswerIsBounded(t *testing.T) {
	big := slices.Concat([]byte{tlsHandshake, 3, 1, 0x40, 0, tlsClientHello, 0, 0x3f, 0xfc}, make([]byte, 1<<20))
	for _, c := range []struct {
		name     string
		fastOpen bool
		by       int64 // bytes of room that others have
		want     int
	}{
		{"what is given", true, 0, maxEarly},
		{"what may be a ClientHello", false, 0, maxEarly},
		{"by all", true, maxEarlyByAll - 3*firstEarly, 2 * firstEarly},
		{"there is no room", true, maxEarlyByAll, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				near, far := net.Pipe()
				defer near.Close()
				defer far.Close()
				p := New(Config{})
				p.early.Store(c.by)
				o := p.says(far, c.fastOpen)
				o.ways(2)
				var got bytes.Buffer
				g := given{of: o, to: &got}
				o.begin(&g)
				wrote := 0
				near.SetWriteDeadline(time.Now().Add(time.Second))
				for n, err := 0, error(nil); err == nil && wrote < len(big); wrote += n {
					n, err = near.Write(big[wrote:min(wrote+1000, len(big))])
				}
				o.stop()
				so := o.so(&g)
				if wrote != c.want || len(o.kept) != c.want || cap(o.kept) != c.want {
					t.Errorf("%d were read, %d are kept in %d", wrote, len(o.kept), cap(o.kept))
				}
				if given := int(so.AToB); given+len(so.Unwritten) != c.want || (given > 0) != (c.fastOpen && c.want > 0) || !bytes.Equal(got.Bytes(), big[:given]) {
					t.Errorf("%d were given, %d are left", given, len(so.Unwritten))
				}
				if n := p.early.Load(); n != c.by {
					t.Errorf("%d bytes of room are left", n-c.by)
				}
			})
		})
	}
}

// Whoever is asked, refuses, is late or is lost: an endpoint hears what its client said, from the beginning, in order and once, and an end only behind all of it. Who has not got the flow has heard no more
// than may be heard twice.
func TestWhatIsHeardEarlyIsHeardOnce(t *testing.T) {
	const far, flows = 60 * time.Millisecond, 40
	type sort struct {
		seed    uint64
		network network
		fast    bool
		detour  string
	}
	for lasts, sorts := range map[bool][]sort{
		false: {{0, oneWay, true, "sfo1"}, {4, twoWays, false, ""}},
		true:  {{2, oneWay, false, "sfo1"}, {3, twoWays, true, ""}},
	} {
		t.Run(fmt.Sprintf("lasting %v", lasts), func(t *testing.T) {
			var texts [flows][]byte
			var hellos [flows]int
			chance := rand.New(rand.NewPCG(sorts[0].seed, 3))
			for i := range texts {
				if chance.IntN(2) == 0 {
					texts[i] = helloOf(t, &tls.Config{ServerName: fmt.Sprintf("%d.example.com", i)})
					hellos[i] = len(texts[i])
				}
				rest := make([]byte, 8+chance.IntN(40_000))
				for j := range rest {
					rest[j] = byte(chance.Uint32())
				}
				texts[i] = append(texts[i], rest...)
			}
			inEarlyWorld(t, far, lasts, func(w *earlyWorld) {
				for _, s := range sorts {
					name := fmt.Sprintf("%d: %d ways, fastOpen %v, detour %q", s.seed, len(s.network.groups), s.fast, s.detour)
					w.serves(name, s.network, s.detour, func(l *spec.AcceleratorListener) { l.FastOpen = s.fast })
					w.chance = rand.New(rand.NewPCG(s.seed, 4))
					over := make(chan struct{})
					var all, mishaps sync.WaitGroup
					mishap := rand.New(rand.NewPCG(s.seed, 5))
					mishaps.Go(func() { w.mishaps(mishap, over) })
					said, whole := map[netip.AddrPort]int{}, 0
					for i, text := range texts {
						chance := rand.New(rand.NewPCG(s.seed, uint64(100+i)))
						all.Go(func() {
							time.Sleep(time.Duration(chance.Int64N(int64(5 * time.Second))))
							who, all := w.speaks(text, hellos[i], chance)
							w.mu.Lock()
							defer w.mu.Unlock()
							if said[who] = i; all {
								whole++
							}
						})
					}
					all.Wait()
					close(over)
					mishaps.Wait()
					time.Sleep(10 * time.Second)
					w.heardOnce(texts[:], hellos[:], said, s.fast, len(s.network.groups) == 1 && s.detour == "")
					early := w.plane.Counters()["accelerator_flows_early_total"]
					t.Logf("%d of %d flows were served, the first bytes of %d were early, %d endpoints heard something", whole, flows, early, len(w.came))
					if whole < flows/5 || early < flows/20 {
						t.Error("too little has happened")
					}
				}
			})
		})
	}
}

// mishaps makes the paths of a world worse and well again, until it is over.
func (w *earlyWorld) mishaps(chance *rand.Rand, over chan struct{}) {
	for {
		to := []string{"icn1", "iad1", "sfo1"}[chance.IntN(3)]
		switch chance.IntN(3) {
		case 0:
			w.in.Cut("edge", to)
		case 1:
			w.in.CutOneWay(to, "edge")
		case 2:
			w.in.Slow("edge", to, time.Duration(chance.Int64N(int64(200*time.Millisecond))))
		}
		for range 2 {
			select {
			case <-over:
				w.in.Heal("edge", to)
				return
			case <-time.After(time.Duration(chance.Int64N(int64(700 * time.Millisecond)))):
			}
			w.in.Heal("edge", to)
			w.in.Slow("edge", to, 0)
		}
	}
}

// speaks is a client that says a text, of which the beginning may be a ClientHello, and reads its echo; whole says that all came back.
func (w *earlyWorld) speaks(text []byte, hello int, chance *rand.Rand) (who netip.AddrPort, whole bool) {
	c := w.dial()
	defer c.Close()
	who = relay.AddrPort(c.LocalAddr())
	goes := chance.IntN(5) == 0 // before it has said all
	var write sync.WaitGroup
	write.Go(func() {
		first := hello
		for rest := text; len(rest) > 0; {
			n := min(len(rest), 1+chance.IntN(20_000))
			if first > 0 && chance.IntN(4) > 0 {
				n = first
			}
			first = 0
			if _, err := c.Write(rest[:n]); err != nil {
				return
			}
			rest = rest[n:]
			time.Sleep(time.Duration(chance.Int64N(int64(300 * time.Millisecond))))
			if goes {
				c.SetLinger(0)
				c.Close()
				return
			}
		}
		c.CloseWrite()
	})
	got, err := io.ReadAll(c)
	write.Wait()
	if !bytes.HasPrefix(text, got) || err == nil && len(got) < len(text) {
		w.Errorf("of %d bytes %d came back, alike: %v; %v", len(text), len(got), bytes.HasPrefix(text, got), err)
	}
	return who, err == nil
}

// heardOnce judges what endpoints have heard of some texts, which clients have said and may begin with ClientHellos. alone says that there was one endpoint to ask only.
func (w *earlyWorld) heardOnce(texts [][]byte, hellos []int, said map[netip.AddrPort]int, fast, alone bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	heard := make([][]int, len(texts))
	for _, one := range w.came {
		i, known := said[one.client]
		if !known || !bytes.HasPrefix(texts[i], one.text) {
			w.Errorf("an endpoint at %s heard %d bytes that its client did not say", one.node, len(one.text))
			continue
		}
		if one.err == nil && len(one.text) < len(texts[i]) {
			w.Errorf("an endpoint at %s heard an end after %d of %d bytes", one.node, len(one.text), len(texts[i]))
		}
		heard[i] = append(heard[i], len(one.text))
	}
	for i, all := range heard {
		slices.Sort(all)
		most := hellos[i]
		if fast {
			most = maxEarly
		}
		if alone {
			most = 0
		}
		for _, n := range all[:max(len(all)-1, 0)] {
			if n > most {
				w.Errorf("two endpoints heard %d bytes of a text that begins with a ClientHello of %d", n, hellos[i])
			}
		}
	}
}
