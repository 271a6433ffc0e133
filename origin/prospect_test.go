package origin

import (
	"bytes"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/perigee-net/perigee/cluster/health"
	"github.com/perigee-net/perigee/cluster/proxy"
	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/origin/relay"
)

// What a prospect becomes once its target has taken it is what TakeFlow would have made of it, and before nothing is counted.
func TestAProspectIsWhatTakeFlowWouldDialFirst(t *testing.T) {
	inWorld(t, 2, func(t *testing.T, w *world) {
		s := w.udpSpec()
		web := *s.TargetGroups["web"]
		web.Name, web.Protocol = "tcp", spec.TCP
		s.TargetGroups["tcp"] = &web
		s.TargetGroups["there"] = &spec.TargetGroup{Name: "there", Region: "there", Targets: web.Targets}
		s.TargetGroups["empty"] = &spec.TargetGroup{Name: "empty", Region: "here"}
		headed := web
		headed.Name, headed.ProxyProtocolV2 = "headed", true
		s.TargetGroups["headed"] = &headed
		w.apply(s)
		client := netip.MustParseAddrPort("198.51.100.7:40000")
		for _, resource := range []string{
			"targetGroup/none", "targetGroup/there", "targetGroup/empty", Preserved("targetGroup/tcp", true), "endpoint/b/1.2.3.4:5", "endpoint/a/5", "",
		} {
			if one, ok := w.plane.Prospect(resource, client); ok {
				t.Errorf("%s: %v is to be connected to", resource, one.Target)
			}
		}
		if one, ok := w.plane.Prospect("targetGroup/headed", client); !ok || !bytes.Equal(one.First, proxy.Header(client, web.Targets[0].AddrPort())) {
			t.Errorf("it is told %v", one)
		}
		endpoint := netip.AddrPortFrom(w.targets[0].Addr(), 99)
		for _, c := range []struct {
			resource string
			target   netip.AddrPort
		}{
			{"targetGroup/tcp", web.Targets[0].AddrPort()},
			{"endpoint/a/" + endpoint.String(), endpoint},
			{"targetGroup/tcp", web.Targets[1].AddrPort()},
		} {
			before := w.plane.Counters()
			one, ok := w.plane.Prospect(c.resource, client)
			if !ok || one.Target != c.target {
				t.Fatalf("%s: %+v, want %v", c.resource, one, c.target)
			}
			for name, n := range w.plane.Counters() {
				if n != before[name] {
					t.Errorf("%s is counted before anything has become of it", name)
				}
			}
			near, far := net.Pipe()
			defer near.Close()
			target, ended := one.Took(far).Hold(near)
			key := one.flow.key
			if target != far || w.plane.Flows(key) != 1 {
				t.Errorf("%d flows to %s", w.plane.Flows(key), key)
			}
			if want := health.TargetKey("tcp", c.target); c.target != endpoint && key != want {
				t.Errorf("it is known as %s, not %s", key, want)
			}
			ended(relay.Result{AToB: 3, BToA: 4})
			if w.plane.Flows(key) != 0 {
				t.Errorf("%d flows are left", w.plane.Flows(key))
			}
		}
		w.counted("origin_flows_total", 3)
		w.counted("origin_flow_bytes_in_total", 9)
		w.counted("origin_flow_bytes_out_total", 12)
	})
}

// A target that takes no flows is found by those that loops connect, and others share them out. What says nothing of it is for TakeFlow to ask again.
func TestAProspectThatComesToNothingSaysWhatItIsWorth(t *testing.T) {
	inWorld(t, 3, func(t *testing.T, w *world) {
		e := listening(w)
		w.listen(w.targets[1], ":80", func(c net.Conn) { c.Close() })
		w.listen(w.targets[2], ":80", func(c net.Conn) { c.Close() })
		client := netip.MustParseAddrPort("198.51.100.7:40000")
		prospect := func() *Prospect {
			one, ok := w.plane.Prospect("targetGroup/web", client)
			if !ok {
				t.Fatal("there is no target")
			}
			return one
		}
		taken := map[string]int{}
		const flows = 9
		refused := uint64(0)
		for range flows {
			one := prospect()
			far, err := w.node.Dial(t.Context(), "tcp", one.Target.String())
			if err == nil {
				far.Close()
				one.Took(far)
				taken[one.Target.String()]++
				continue
			}
			refused++
			one.Left(err)
			if got, want := e.take(), "target/web/10.0.0.1:80 by 198.51.100.7 failed: traffic: dial: "; !strings.HasPrefix(got, want) || strings.Contains(got, ";") {
				t.Errorf("told %q", got)
			}
			f, err := w.plane.TakeFlow(t.Context(), "targetGroup/web", client)
			if err != nil {
				t.Fatal(err)
			}
			f.Close()
			taken[f.RemoteAddr().String()]++
		}
		if two, three := taken["10.0.0.2:80"], taken["10.0.0.3:80"]; two+three != flows || two-three < -1 || two-three > 1 {
			t.Errorf("they are shared out: %v", taken)
		}
		w.counted("origin_flows_total", flows)
		w.counted("origin_target_connects_total", flows+refused)
		w.counted("origin_target_connect_errors_total", refused)
		w.counted("origin_target_retries_total", refused)

		for w.plane.table.Load().groups.Get("web").turn()%3 != 0 { // the first's, so that it is the second's
		}
		for i, err := range []error{nil, net.ErrClosed, os.NewSyscallError("socket", syscall.EMFILE), os.ErrDeadlineExceeded} {
			one := prospect()
			if one.Target != w.addrs()[1] {
				t.Errorf("%d: it is the turn of %v", i, one.Target)
			}
			one.Left(err)
		}
		if _, ok := w.plane.Prospect("targetGroup/web", client); ok {
			t.Error("a target that was late is to be asked again")
		}
		if f, err := w.plane.TakeFlow(t.Context(), "targetGroup/web", client); err != nil {
			t.Error(err)
		} else if at := relay.AddrPort(f.RemoteAddr()); at != w.addrs()[1] {
			t.Errorf("it is the turn of %v", at)
		} else {
			f.Close()
		}
		if told := e.take(); told != "" {
			t.Errorf("told %s", told)
		}
		w.counted("origin_target_connects_total", flows+refused+4)
		w.counted("origin_target_connect_errors_total", refused)
		w.counted("origin_target_connect_faults_total", 1)
		w.counted("origin_target_retries_total", refused)
	})
}
