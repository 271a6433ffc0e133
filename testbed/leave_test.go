package testbed

import (
	"fmt"
	"strings"
	"testing"
	"testing/fstest"
	"testing/synctest"
	"time"

	"github.com/perigee-net/perigee/node"
)

// oneRegion is an accelerator and a distribution that have nobody but Frankfurt's node.
const oneRegion = `
kind: Accelerator
name: only
ipAddresses: [198.51.100.2]
listeners:
  - {protocol: TCP, portRanges: [{fromPort: 7000}], endpointGroups: [{region: eu-central-1, endpoints: [{targetGroup: tcp-fra}]}]}
  - protocol: UDP
    portRanges: [{fromPort: 7000}]
    endpointGroups:
      - region: eu-central-1
        endpoints: [{address: 10.1.0.1}, {address: 10.1.0.2}]
        portOverrides: [{listenerPort: 7000, endpointPort: 9101}]
        healthCheckPort: 9101
        healthCheckInterval: 2
---
kind: CachePolicy
name: fresh
maxTTL: 0
defaultTTL: 0
---
kind: Distribution
name: only
aliases: [only.demo.perigee.test]
origins: [{name: web, loadBalancers: [web-fra]}]
defaultCacheBehavior: {targetOrigin: web, cachePolicy: fresh}
`

// The one node that can dial an endpoint stops. Until its doors close the doors of other POPs give it what is new, as nobody else could take it, and
// what it takes last has its time.
func TestWhatOnlyALeavingNodeCanServeItServesUntilItsDoorsClose(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		w, err := NewWorld(t.Context(), WorldConfig{
			Dir: dir, Files: fstest.MapFS{"only.yaml": {Data: []byte(oneRegion)}}, Seed: seed(t), Drain: node.DrainTime,
		})
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		const served = `
dial seoul 198.51.100.2:7000                        => "eu-central-1 fra-" " echoed, closed" !error
dial newyork 198.51.100.2:7000                      => "eu-central-1 fra-" " echoed, closed" !error
ask seoul 198.51.100.2:7000                         => "eu-central-1 fra-" " echoed" !error
get seoul@icn1 http://only.demo.perigee.test/region => 200 "eu-central-1 fra-"
`
		w.steps(t, `
apply only.yaml          => revision=2
within 10s status all    => agree revision=2 !behind
`)
		time.Sleep(10 * time.Second)
		w.steps(t, served)
		began, stopped := time.Now(), make(chan string, 1)
		go func() {
			said, err := w.stopNode([]string{"fra1"})
			stopped <- fmt.Sprint(said, " ", err)
		}()
		time.Sleep(2 * time.Second)
		explained := w.do(t, "explain", "seoul@icn1", "tcp", "198.51.100.2:7000")
		if !strings.Contains(explained, "leaves: taken all the same, until their doors close") {
			t.Errorf("explained:\n%s", explained)
		}
		for time.Since(began) < node.DrainTime-10*time.Second {
			time.Sleep(5 * time.Second)
			w.steps(t, served)
		}
		// One that begins as its doors are about to close is not over then: it has 10 s, and what it sends arrives.
		time.Sleep(node.DrainTime + node.LeaveTime - 4*time.Second - time.Since(began))
		w.steps(t, `
dial seoul 198.51.100.2:7000 6s                     => "eu-central-1 fra-" " echoed, closed" !error
`)
		if got := <-stopped; !strings.HasSuffix(got, " <nil>") || time.Since(began) > node.LeaveTime+node.DrainTime+10*time.Second {
			t.Errorf("%s after %v: want nothing cut off", got, time.Since(began))
		}
	})
}
