package main

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/node/api"
	"github.com/perigee-net/perigee/testbed/memnet"
)

// What purge --wait says is by GET /v1/orders: who is behind the epoch of the purge when the time is over.
func TestWhoWaitsForAPurgeHearsWhoHasNotDoneIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in := memnet.New(1)
		defer in.Close()
		node, person := in.Host("node", spec.Location{}, netip.MustParseAddr("192.0.2.1")), in.Host("person", spec.Location{}, netip.MustParseAddr("192.0.2.2"))
		l, err := node.Listen("tcp", ":80")
		if err != nil {
			t.Fatal(err)
		}
		var list atomic.Pointer[api.OrderList]
		server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			said := list.Load()
			if r.Method != http.MethodGet || r.URL.Path != "/v1/orders" || said == nil {
				http.Error(w, "no", http.StatusInternalServerError)
				return
			}
			w.Header().Set(api.Mark, "1")
			w.Header().Set("Content-Type", "application/json")
			json.NewEncoder(w).Encode(said)
		})}
		go server.Serve(l)
		defer server.Close()
		client, err := api.NewClient("http://192.0.2.1:80", api.Options{Dial: person.Dial})
		if err != nil {
			t.Fatal(err)
		}
		wait := func(timeout time.Duration) (out string, took time.Duration, err error) {
			ctx, cancel := context.WithTimeout(t.Context(), timeout)
			defer cancel()
			var w strings.Builder
			start := time.Now()
			err = doneByAll(ctx, &w, client, 7, false)
			return w.String(), time.Since(start), err
		}

		if _, _, err := wait(time.Second); err == nil || !strings.Contains(err.Error(), "epoch 7 is agreed, but who has it is not known") {
			t.Errorf("a node that does not say: %v", err)
		}
		list.Store(&api.OrderList{Epoch: 8, Behind: []api.NodeBehind{{Node: "fra1", Epoch: 6}, {Node: "iad1", Epoch: 7}, {Node: "nrt1", Epoch: 2}}})
		_, took, err := wait(3 * time.Second)
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "epoch 7 is agreed, but not done by all: fra1, nrt1: ") || took != 3*time.Second {
			t.Errorf("two that have not: %v after %v", err, took)
		}
		time.AfterFunc(time.Second, func() { list.Store(&api.OrderList{Epoch: 8, Behind: []api.NodeBehind{{Node: "iad1", Epoch: 7}}}) })
		if out, took, err := wait(3 * time.Second); err != nil || !strings.HasPrefix(out, "done by all live nodes, 1") || took > 2*time.Second {
			t.Errorf("all have after a second: %q, %v after %v", out, err, took)
		}
	})
}
