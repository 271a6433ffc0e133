//go:build linux

package procs

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/perigee-net/perigee/node/api"
)

// site is what the clusters of these tests serve: a page from an origin, and its name.
const site = `kind: Region
name: ap-northeast-2
pops: [{name: n1}, {name: n4}]
---
kind: Region
name: eu-central-1
pops: [{name: n2}, {name: n5}]
---
kind: Region
name: us-east-1
pops: [{name: n3}]
---
kind: CachePolicy
name: never
maxTTL: 0
defaultTTL: 0
---
kind: Distribution
name: site
aliases: [www.procs.test]
origins: [{name: web, url: %s}]
defaultCacheBehavior: {targetOrigin: web}
cacheBehaviors: [{pathPattern: /fresh/*, targetOrigin: web, cachePolicy: never}]
---
kind: HostedZone
name: procs.test
records:
  - {name: www, type: A, alias: {distribution: site}}
  - {name: text, type: TXT, ttl: 60, values: ['"here"']}
`

// serveSite starts an origin, applies the site, and waits until every node serves it.
func serveSite(ctx context.Context, t *testing.T, c *Cluster) {
	t.Helper()
	l, err := net.Listen("tcp", netip.AddrPortFrom(c.Spare(0), 9000).String())
	if err != nil {
		t.Fatal(err)
	}
	origin := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, "page %s\n", r.URL.Path) })}
	ended := make(chan struct{})
	go func() { defer close(ended); origin.Serve(l) }()
	t.Cleanup(func() { origin.Close(); <-ended })
	if err := c.Nodes[0].Await(ctx, "takes the site", func(ctx context.Context, client *api.Client) error {
		_, err := client.Apply(ctx, api.ApplyRequest{ID: "site", Files: []api.File{{Name: "site.yaml", Data: fmt.Sprintf(site, "http://"+l.Addr().String())}}})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	for _, n := range c.Nodes {
		if err := n.Await(ctx, "serves the site", func(context.Context, *api.Client) error { return serves(n) }); err != nil {
			t.Fatal(err)
		}
	}
}

// patience bounds one question to a door.
const patience = 5 * time.Second

// serves asks a node for a page of the site that no cache has, and for its name.
func serves(n *Node) error {
	client := http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
	path := fmt.Sprintf("/fresh/%d", time.Now().UnixNano())
	req, err := http.NewRequest(http.MethodGet, "http://"+n.HTTP()+path, nil)
	if err != nil {
		return err
	}
	req.Host = "www.procs.test"
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK || string(body) != "page "+path+"\n" {
		return fmt.Errorf("%s: %s %q, %w", n.Name, res.Status, body, err)
	}
	addresses, _, err := resolve(n)
	if err != nil || len(addresses) == 0 {
		return fmt.Errorf("%s: %v %w", n.Name, addresses, err)
	}
	return nil
}

// resolve asks a node for the addresses of the site, and how long they may be remembered.
func resolve(n *Node) (addresses []string, ttl time.Duration, err error) {
	m := new(dns.Msg).SetQuestion("www.procs.test.", dns.TypeA)
	client := dns.Client{Timeout: patience}
	res, _, err := client.Exchange(m, n.DNS())
	if err != nil {
		return nil, 0, err
	}
	for _, rr := range res.Answer {
		if a, is := rr.(*dns.A); is {
			addresses = append(addresses, a.A.String())
			ttl = time.Duration(a.Hdr.Ttl) * time.Second
		}
	}
	if len(addresses) == 0 {
		return nil, 0, fmt.Errorf("%s answers %s", n.Name, strings.ReplaceAll(res.String(), "\n", " "))
	}
	return addresses, ttl, nil
}
