package faulty

import (
	"context"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
)

func TestItMisbehavesOverTheKernelsSockets(t *testing.T) {
	listeners := make(chan net.Listener, 10)
	o, err := New(Config{Name: "faulty", HTTP: "127.0.0.1:0", Control: "127.0.0.1:0", Listen: func(network, address string) (net.Listener, error) {
		l, err := net.Listen(network, address)
		if err == nil {
			listeners <- l
		}
		return l, err
	}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() {
		if err := o.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	control, web := (<-listeners).Addr().String(), (<-listeners).Addr().String()
	dial := (&net.Dialer{}).DialContext
	for _, c := range []struct{ orders, end string }{
		{"well", "whole"}, {"cut after 1000", "closed"}, {"reset after 1000", "reset"}, {"reset", "reset"}, {"drop", "reset"}, {"refuse", "refused"}, {"well", "whole"},
	} {
		if _, err := Tell(ctx, dial, control, "well\n"+c.orders); err != nil {
			t.Fatal(err)
		}
		transport := &http.Transport{DialContext: dial, DisableKeepAlives: true}
		req, err := http.NewRequestWithContext(ctx, "GET", "http://"+web+"/bytes/100000", nil)
		if err != nil {
			t.Fatal(err)
		}
		end := "whole"
		res, err := transport.RoundTrip(req)
		if err == nil {
			_, err = io.Copy(io.Discard, res.Body)
			res.Body.Close()
		}
		if err != nil {
			end = plain(err)
		}
		if end != c.end {
			t.Errorf("%s: %s, want %s", c.orders, end, c.end)
		}
	}
}
