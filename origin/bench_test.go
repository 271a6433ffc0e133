package origin

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"

	"github.com/perigee-net/perigee/cluster/spec"
)

// One request after another, through the load balancer to a target and back, over loopback. Client, load balancer and
// target share the machine.
func BenchmarkProxiedRequest(b *testing.B) {
	body := make([]byte, 1024)
	target := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write(body) }))
	defer target.Close()
	p := New(Config{Region: "here"})
	defer p.Close()
	at := netip.MustParseAddrPort(target.Listener.Addr().(*net.TCPAddr).String())
	if err := p.Apply(&spec.Spec{
		TargetGroups: map[string]*spec.TargetGroup{"web": {Name: "web", Region: "here", Targets: []spec.Target{{Address: at.Addr(), Port: at.Port()}}}},
		LoadBalancers: map[string]*spec.LoadBalancer{"web": {Name: "web", Region: "here", Listeners: []spec.Listener{
			{Protocol: spec.HTTP, Port: 80, Default: spec.Action{Forward: "web"}},
		}}},
	}); err != nil {
		b.Fatal(err)
	}
	front := httptest.NewServer(p.Handler("web", 80))
	defer front.Close()

	for name, url := range map[string]string{"through the load balancer": front.URL, "direct": target.URL} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(body)))
			for b.Loop() {
				res, err := front.Client().Get(url)
				if err != nil {
					b.Fatal(err)
				}
				io.Copy(io.Discard, res.Body)
				res.Body.Close()
			}
		})
	}
}
