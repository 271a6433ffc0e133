package faulty

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/netip"
	"reflect"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/testbed/memnet"
)

// world is an origin and a client, 100 ms apart.
type world struct {
	t      *testing.T
	in     *memnet.Internet
	client *memnet.Host
	origin *Origin
	stop   func()
}

const rtt = 100 * time.Millisecond

func run(t *testing.T, test func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		in := memnet.New(5)
		t.Cleanup(in.Close)
		client := in.Host("client", spec.Location{}, netip.MustParseAddr("192.0.2.1"))
		host := in.Host("origin", spec.Location{}, netip.MustParseAddr("192.0.2.2"))
		in.Link("client", "origin", memnet.Path{Delay: rtt / 2})
		o, err := New(Config{Name: "faulty", Listen: host.Listen, HTTP: ":80", TCP: ":9", Control: ":8079", Seed: 1})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := o.Run(ctx); err != nil {
				t.Error(err)
			}
		})
		stop := func() { cancel(); wg.Wait() }
		t.Cleanup(func() {
			stop()
			time.Sleep(time.Second) // net/http lets connections linger that it ended with bytes unread
		})
		synctest.Wait()
		test(t, &world{t, in, client, o, stop})
	})
}

func (w *world) tell(text string) string {
	w.t.Helper()
	answer, err := Tell(w.t.Context(), w.client.Dial, "192.0.2.2:8079", text)
	if err != nil {
		w.t.Fatal(err)
	}
	return answer
}

// get asks by a connection of its own, and returns the head, the body as far as it came, how it ended, and how long it took.
func (w *world) get(path string) (res *http.Response, body string, end string, took time.Duration) {
	began := time.Now()
	done := func() time.Duration { return time.Since(began) }
	ctx, cancel := context.WithTimeout(w.t.Context(), time.Minute)
	defer cancel()
	transport := &http.Transport{DialContext: w.client.Dial, DisableKeepAlives: true}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, "GET", "http://192.0.2.2"+path, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	res, err = transport.RoundTrip(req)
	if err != nil {
		return nil, "", plain(err), done()
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err != nil {
		return res, string(b), plain(err), done()
	}
	return res, string(b), "whole", done()
}

func plain(err error) string {
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return "refused"
	case errors.Is(err, syscall.ECONNRESET):
		return "reset"
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return "closed"
	case errors.Is(err, context.DeadlineExceeded):
		return "timeout"
	}
	return err.Error()
}

func TestItIsWellUntilItIsTold(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		res, body, end, took := w.get("/index.html")
		if end != "whole" || res.StatusCode != 200 || body != "faulty /index.html\n" || took != 2*rtt || res.Header.Get("X-Origin") != "faulty" || res.Header.Get("Cache-Control") != "public, max-age=60" {
			t.Errorf("%v %q %s %v", res, body, end, took)
		}
		res, body, end, _ = w.get("/bytes/100000")
		if end != "whole" || res.ContentLength != 100_000 || len(body) != 100_000 || !strings.HasPrefix(body, "0123456789abcde\n0123") {
			t.Errorf("%v %d %s", res, len(body), end)
		}
		if got := w.tell(""); got != "well\n" {
			t.Errorf("orders: %q", got)
		}
		if greeting, echo, end := w.flow("hello\n"); greeting != "faulty\n" || echo != "hello\n" || end != "closed" {
			t.Errorf("%q %q %s", greeting, echo, end)
		}
		if got, want := w.origin.Served(), map[string]int{"well": 3}; !maps.Equal(got, want) {
			t.Errorf("served %v", got)
		}
	})
}

func TestEachMisbehaviourIsAsItIsTold(t *testing.T) {
	const path, size = "/bytes/1000", 1000
	for _, c := range []struct {
		orders string
		status int // 0: no head
		told   int64
		bytes  int
		end    string
		took   time.Duration // beside the two round trips
	}{
		{"slow head 3s", 200, size, size, "whole", 3 * time.Second},
		{"slow body 4s", 200, size, size, "whole", 4 * time.Second},
		{"status 503", 503, size, size, "whole", 0},
		{"status 204", 204, 0, 0, "whole", 0},
		{"status 503\nslow head 2s", 503, size, size, "whole", 2 * time.Second},
		{"hang", 0, 0, 0, "timeout", time.Minute - 2*rtt},
		{"reset", 0, 0, 0, "reset", 0},
		{"reset after 300", 200, size, 300, "reset", 0},
		{"reset after 300\nslow body 2s", 200, size, 300, "reset", 2 * time.Second},
		{"cut after 300", 200, size, 300, "closed", 0},
		{"cut after 0", 200, size, 0, "closed", 0},
		{"cut after 2000", 200, size, size, "whole", 0},
		{"length +10", 200, size + 10, size, "closed", 0},
		{"length -10", 200, size - 10, size - 10, "whole", 0},
		{"length -2000", 200, 0, 0, "whole", 0},
		{"endless", 200, -1, 1 << 20, "whole", -1}, // as much as was read
		{"refuse", 0, 0, 0, "refused", -rtt},
		{"drop", 0, 0, 0, "reset", -1},
		{"cut after 300\nhang\nendless", 0, 0, 0, "timeout", time.Minute - 2*rtt},
		{"cut after 300\nreset after 400\nstatus 404", 404, size, 400, "reset", 0},
	} {
		t.Run(c.orders, func(t *testing.T) {
			run(t, func(t *testing.T, w *world) {
				if got := w.tell(c.orders); len(strings.Fields(got)) != len(strings.Fields(c.orders)) {
					t.Errorf("told %q: %q", c.orders, got)
				}
				res, body, end, took := w.get(path)
				status, told := 0, int64(0)
				if res != nil {
					status, told = res.StatusCode, res.ContentLength
				}
				if status != c.status || told != c.told || len(body) != c.bytes || end != c.end {
					t.Errorf("%d, %d bytes of %d, %s; want %+v", status, len(body), told, end, c)
				}
				if c.took != -1 && took != 2*rtt+c.took {
					t.Errorf("took %v, want %v", took, 2*rtt+c.took)
				}
				if got := w.tell("well"); got != "well\n" {
					t.Errorf("well: %q", got)
				}
				if _, body, end, took := w.get(path); end != "whole" || len(body) != size || took != 2*rtt {
					t.Errorf("well again: %d bytes, %s, %v", len(body), end, took)
				}
			})
		})
	}
	run(t, func(t *testing.T, w *world) {
		w.tell("garbage")
		if res, _, end, _ := w.get(path); res != nil || !strings.Contains(end, "malformed HTTP") {
			t.Errorf("garbage: %v, %s", res, end)
		}
	})
}

// flow says something to the TCP service and ends: what came first, what came then, and how it ended.
func (w *world) flow(say string) (greeting, echo, end string) {
	ctx, cancel := context.WithTimeout(w.t.Context(), time.Minute)
	defer cancel()
	conn, err := w.client.Dial(ctx, "tcp", "192.0.2.2:9")
	if err != nil {
		return "", "", plain(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(time.Minute))
	r := bufio.NewReader(conn)
	if greeting, err = r.ReadString('\n'); err != nil {
		return greeting, "", plain(err)
	}
	if _, err := io.WriteString(conn, say); err != nil {
		return greeting, "", plain(err)
	}
	conn.(interface{ CloseWrite() error }).CloseWrite()
	b, err := io.ReadAll(io.LimitReader(r, 1<<20))
	if err != nil {
		return greeting, string(b), plain(err)
	}
	return greeting, string(b), "closed"
}

func TestFlowsMisbehaveToo(t *testing.T) {
	const say = "say this\n"
	for _, c := range []struct {
		orders, greeting string
		echo             int
		end              string
		took             time.Duration
	}{
		{"slow head 2s", "faulty\n", len(say), "closed", 2 * time.Second},
		{"slow body 2s", "faulty\n", len(say), "closed", 4 * time.Second},
		{"reset", "", 0, "reset", -1},
		{"reset after 4", "faulty\n", 4, "reset", 0},
		{"cut after 4", "faulty\n", 4, "closed", 0},
		{"endless", "faulty\n", 1 << 20, "closed", -1},
		{"garbage", "faulty\n", 1 << 20, "closed", -1},
		{"refuse", "", 0, "refused", -1},
		{"drop", "", 0, "reset", -1},
		{"status 500", "faulty\n", len(say), "closed", 0},
	} {
		t.Run(c.orders, func(t *testing.T) {
			run(t, func(t *testing.T, w *world) {
				w.tell(c.orders)
				began := time.Now()
				greeting, echo, end := w.flow(say)
				if greeting != c.greeting || len(echo) != c.echo || end != c.end {
					t.Errorf("%q, %d bytes, %s; want %+v", greeting, len(echo), end, c)
				}
				if took := time.Since(began); c.took != -1 && took != c.took+3*rtt {
					t.Errorf("took %v", took)
				}
			})
		})
	}
}

func TestAFlowThatHangsHangsUntilItsClientGoes(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.tell("hang")
		conn, err := w.client.Dial(t.Context(), "tcp", "192.0.2.2:9")
		if err != nil {
			t.Fatal(err)
		}
		conn.SetDeadline(time.Now().Add(time.Hour))
		began := time.Now()
		if _, err := conn.Read(make([]byte, 1)); err == nil || time.Since(began) != time.Hour {
			t.Errorf("read: %v after %v", err, time.Since(began))
		}
		conn.Close()
	})
}

func TestRefuseClosesThePortsAndKeepsWhoIsHere(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		conn, err := w.client.Dial(t.Context(), "tcp", "192.0.2.2:9")
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		r := bufio.NewReader(conn)
		r.ReadString('\n')
		w.tell("refuse")
		if _, _, end := w.flow("x"); end != "refused" {
			t.Errorf("a new flow: %s", end)
		}
		io.WriteString(conn, "still here\n")
		if line, err := r.ReadString('\n'); line != "still here\n" {
			t.Errorf("%q, %v", line, err)
		}
		w.tell("refuse\nslow head 1s") // twice is fine
		w.tell("not refuse")
		if greeting, _, end := w.flow("x"); greeting != "faulty\n" || end != "closed" {
			t.Errorf("open again: %q %s", greeting, end)
		}
		if got := w.tell(""); got != "slow head 1s\n" {
			t.Errorf("what is left: %q", got)
		}
	})
}

func TestAShareOfRequestsMisbehaves(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.tell("status 503 share 20%")
		transport := &http.Transport{DialContext: w.client.Dial}
		defer transport.CloseIdleConnections()
		bad := 0
		for range 1000 {
			req, _ := http.NewRequest("GET", "http://192.0.2.2/", nil)
			res, err := transport.RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			io.Copy(io.Discard, res.Body)
			res.Body.Close()
			if res.StatusCode == 503 {
				bad++
			}
		}
		if bad < 160 || bad > 240 {
			t.Errorf("%d of 1,000 were bad", bad)
		}
		if got := w.origin.Served(); got["status"] != bad || got["well"] != 1000-bad {
			t.Errorf("served %v", got)
		}
	})
}

func TestOrdersComeByTheHTTPPortToo(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		got, err := Tell(t.Context(), w.client.Dial, "192.0.2.2:80", "status 500 share 50%\nslow head 10s")
		if err != nil || got != "slow head 10s\nstatus 500 share 50%\n" {
			t.Errorf("%q, %v", got, err)
		}
		// It takes orders as long as requests get there, whatever they say of others.
		began := time.Now()
		if got, err = Tell(t.Context(), w.client.Dial, "192.0.2.2:80", "not slow head"); err != nil || got != "status 500 share 50%\n" || time.Since(began) != 2*rtt {
			t.Errorf("%q, %v, %v", got, err, time.Since(began))
		}
		// All or none.
		if _, err = Tell(t.Context(), w.client.Dial, "192.0.2.2:80", "hang\nfly"); err == nil || !strings.Contains(err.Error(), `no such order: "fly"`) {
			t.Errorf("fly: %v", err)
		}
		if got := w.tell(""); got != "status 500 share 50%\n" {
			t.Errorf("after fly: %q", got)
		}
		if _, err = Tell(t.Context(), w.client.Dial, "192.0.2.2:80", strings.Repeat("hang\n", 1000)); err == nil {
			t.Error("5,000 bytes of orders were taken")
		}
	})
}

func TestItEndsWhateverItDoes(t *testing.T) {
	for _, orders := range []string{"hang", "slow head 1h", "slow body 1h", "endless", "endless\nslow body 1h", "reset after 900\nslow body 1h", "refuse", "well"} {
		t.Run(orders, func(t *testing.T) {
			run(t, func(t *testing.T, w *world) {
				w.tell(orders)
				var wg sync.WaitGroup
				wg.Go(func() { w.get("/bytes/1000") })
				wg.Go(func() { w.flow("x") })
				time.Sleep(10 * time.Second)
				began := time.Now()
				w.stop()
				if took := time.Since(began); took > 0 {
					t.Errorf("it ended after %v", took)
				}
				wg.Wait()
			})
		})
	}
}

func TestAPortThatIsTakenIsSaid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in := memnet.New(5)
		t.Cleanup(in.Close)
		host := in.Host("origin", spec.Location{}, netip.MustParseAddr("192.0.2.2"))
		for _, taken := range []string{":80", ":9", ":8079"} {
			l, err := host.Listen("tcp", taken)
			if err != nil {
				t.Fatal(err)
			}
			o, err := New(Config{Name: "x", Listen: host.Listen, HTTP: ":80", TCP: ":9", Control: ":8079"})
			if err != nil {
				t.Fatal(err)
			}
			if err := o.Run(t.Context()); err == nil {
				t.Errorf("%s was taken", taken)
			}
			l.Close()
		}
		if l, err := host.Listen("tcp", ":80"); err != nil {
			t.Errorf("left open: %v", err)
		} else {
			l.Close()
		}
		if _, err := New(Config{}); err == nil {
			t.Error("an origin of nothing")
		}
	})
}

func TestOrdersAreReadAsTheyAreTold(t *testing.T) {
	for text, want := range map[string]Order{
		"slow head 2s":           {What: SlowHead, For: 2 * time.Second, Share: 1},
		"slow body 500ms":        {What: SlowBody, For: 500 * time.Millisecond, Share: 1},
		"status 404 share 20%":   {What: Status, N: 404, Share: .2},
		"hang share 0.5":         {What: Hang, Share: .5},
		"reset":                  {What: Reset, N: beforeHead, Share: 1},
		"reset after 0":          {What: Reset, Share: 1},
		" cut  after 12 ":        {What: Cut, N: 12, Share: 1},
		"length +5":              {What: Length, N: 5, Share: 1},
		"length -5 share 0.01%":  {What: Length, N: -5, Share: .0001},
		"endless":                {What: Endless, Share: 1},
		"refuse":                 {What: Refuse, Share: 1},
		"drop share 100%":        {What: Drop, Share: 1},
		"garbage share 33.3333%": {What: Garbage, Share: .333333},
	} {
		c, err := parse(text)
		if err != nil || c.put == nil || *c.put != want {
			t.Errorf("%q: %+v, %v", text, c.put, err)
			continue
		}
		if again, err := parse(c.put.String()); err != nil || *again.put != want {
			t.Errorf("%q is %q: %v, %v", text, c.put, again.put, err)
		}
	}
	for _, text := range []string{
		"", " ", "slow", "slow head", "slow head x", "slow head -1s", "slow head 2h", "slow head 1s 2s", "status", "status 99", "status 600", "status x",
		"reset 5", "reset after", "reset after -1", "reset after 5 6", "cut", "cut after x", "length", "length 0", "hang up", "hang share", "hang share 0",
		"hang share 101%", "hang share NaN", "share 20%", "refuse share 50%", "not", "not well", "not fly", "well well", "cut after 9999999999",
	} {
		if c, err := parse(text); err == nil {
			t.Errorf("%q was read as %+v", text, c)
		}
	}
}

func TestOneOrderOfAKindIsInForce(t *testing.T) {
	var orders []Order
	for _, step := range []struct{ text, want string }{
		{"status 500", "status 500"}, {"slow head 1s", "slow head 1s, status 500"}, {"status 404 share 1%", "slow head 1s, status 404 share 1%"},
		{"not hang", "slow head 1s, status 404 share 1%"}, {"not slow head", "status 404 share 1%"}, {"drop", "status 404 share 1%, drop"}, {"well", ""},
	} {
		c, err := parse(step.text)
		if err != nil {
			t.Fatal(err)
		}
		orders = after(orders, c)
		var texts []string
		for _, o := range orders {
			texts = append(texts, o.String())
		}
		if got := strings.Join(texts, ", "); got != step.want {
			t.Errorf("after %q: %s, want %s", step.text, got, step.want)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, text := range strings.Split(Grammar, "   ") {
		f.Add(text)
	}
	for _, text := range []string{"slow head 2s share 20%", "cut after 12", "length +5", "not slow body", "well", "status 503"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		c, err := parse(text)
		if err != nil || c.put == nil {
			return
		}
		again, err := parse(c.put.String())
		if err != nil || !reflect.DeepEqual(c, again) {
			t.Fatalf("%q is %q: %v, %v", text, c.put, fmt.Sprint(again.put), err)
		}
	})
}
