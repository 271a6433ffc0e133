package demo

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/perigee-net/perigee/cluster/spec"
)

func TestTheDemoIsAValidSpec(t *testing.T) {
	for _, url := range []string{"", "http://127.0.0.1:3000"} {
		l := Layout{OriginURL: url, Port: 8081, Accelerator: netip.MustParseAddrPort("198.51.100.1:7777")}
		for i, r := range Regions() {
			for j, name := range []string{"a", "b"} {
				at := netip.AddrFrom4([4]byte{10, byte(i), 0, byte(j)})
				r.Targets = append(r.Targets, Endpoint{Name: r.Short + "-" + name, HTTP: netip.AddrPortFrom(at, 80), TCP: netip.AddrPortFrom(at, 81)})
			}
			l.Regions = append(l.Regions, r)
		}
		yaml, err := l.Spec()
		if err != nil {
			t.Fatal(err)
		}
		docs, err := spec.Split("demo.yaml", yaml)
		if err != nil {
			t.Fatal(err)
		}
		s, err := spec.Build(1, docs, spec.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if len(s.Regions) != 3 || len(s.TargetGroups) != 6 || len(s.LoadBalancers) != 3 || s.Distributions["site"].Origins[0].URL != url {
			t.Errorf("origin %q: %d regions, %d target groups, %d load balancers", url, len(s.Regions), len(s.TargetGroups), len(s.LoadBalancers))
		}
	}
}

func TestATargetServesItsSiteAndCountsWhatIsAsked(t *testing.T) {
	target := &Target{Name: "icn-a", Region: "ap-northeast-2", Site: fstest.MapFS{"a.txt": {Data: []byte("hello")}}}
	get := func(path string) *http.Response {
		w := httptest.NewRecorder()
		target.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		return w.Result()
	}
	for range 2 {
		if res := get("/a.txt"); res.StatusCode != 200 || res.Header.Get("Cache-Control") != "public, max-age=60" {
			t.Errorf("%s, %q", res.Status, res.Header.Get("Cache-Control"))
		}
	}
	get(HealthPath)
	if n, checks := target.Requests("/a.txt"), target.Requests(HealthPath); n != 2 || checks != 0 {
		t.Errorf("%d requests and %d checks counted, want 2 and 0", n, checks)
	}
	if body, _ := io.ReadAll(get(RegionPath).Body); string(body) != "ap-northeast-2 icn-a\n" {
		t.Errorf("got %q", body)
	}
}

func TestATargetGreetsEchoesAndEnds(t *testing.T) {
	target := &Target{Name: "icn-a", Region: "ap-northeast-2", Site: Site()}
	listen := func() net.Listener {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	web, tcp := listen(), listen()
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- target.Serve(ctx, web, tcp, udp) }()
	conn, err := net.Dial("tcp", tcp.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(conn, "hello\n")
	conn.(*net.TCPConn).CloseWrite()
	all, err := io.ReadAll(bufio.NewReader(conn))
	if err != nil || string(all) != "ap-northeast-2 icn-a\nhello\n" {
		t.Errorf("got %q, %v", all, err)
	}
	asks, err := net.Dial("udp", udp.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer asks.Close()
	io.WriteString(asks, "hello")
	answer := make([]byte, 100)
	if n, err := asks.Read(answer); string(answer[:n]) != "ap-northeast-2 icn-a\nhello" || err != nil {
		t.Errorf("got %q, %v", answer[:n], err)
	}
	idle, err := net.Dial("tcp", tcp.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()
	if line, _ := bufio.NewReader(idle).ReadString('\n'); !strings.HasPrefix(line, "ap-northeast-2") {
		t.Errorf("got %q", line)
	}
	stop()
	if err := <-ended; err != nil {
		t.Errorf("it ended with %v", err)
	}
}
