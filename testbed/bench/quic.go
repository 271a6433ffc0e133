//go:build linux

package bench

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
)

// dialTime bounds a handshake over QUIC: nobody refuses a datagram, so who does not speak it is known by silence.
const dialTime = 3 * time.Second

// dialH3 is a client of one connection by HTTP/3, which is made at the first request.
func dialH3(s Stage) (*http3.Transport, error) {
	pem, err := os.ReadFile(s.Cert)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	return &http3.Transport{DisableCompression: true, TLSClientConfig: &tls.Config{RootCAs: pool, ServerName: Name}, QUICConfig: &quic.Config{HandshakeIdleTimeout: dialTime},
		Dial: func(ctx context.Context, _ string, t *tls.Config, q *quic.Config) (*quic.Conn, error) {
			return quic.DialAddr(ctx, s.at(s.TLS), t, q)
		}}, nil
}

// getH3 asks for the object of a size, and returns the length of the body.
func getH3(ctx context.Context, t *http3.Transport, size int64) (int64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("https://%s/%d", Name, size), nil)
	if err != nil {
		return 0, err
	}
	res, err := t.RoundTrip(req)
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	n, err := io.Copy(io.Discard, io.LimitReader(res.Body, maxBody))
	switch {
	case err != nil:
		return n, fmt.Errorf("read the body: %w", err)
	case res.StatusCode != http.StatusOK:
		return n, fmt.Errorf("it is answered %s", res.Status)
	case n != size:
		return n, fmt.Errorf("the body has %d bytes, not %d", n, size)
	}
	return n, nil
}

// speaksH3 says whether a server answers by HTTP/3.
func speaksH3(ctx context.Context, s Stage) error {
	t, err := dialH3(s)
	if err != nil {
		return err
	}
	_, err = getH3(ctx, t, 1<<10)
	return errors.Join(err, t.Close())
}

// overH3 is load by HTTP/3: connections that each have streams in turn, so many at a time.
func overH3(size int64, connections, streams int) func(context.Context, Stage, time.Duration) (Measured, error) {
	return func(ctx context.Context, s Stage, d time.Duration) (m Measured, err error) {
		var mu sync.Mutex
		var times latencies
		var failed error
		var bytes atomic.Int64
		var asking sync.WaitGroup
		var dialed []*http3.Transport
		defer func() {
			for _, t := range dialed {
				err = errors.Join(err, t.Close())
			}
		}()
		for range connections {
			t, err := dialH3(s)
			if err != nil {
				return m, err
			}
			dialed = append(dialed, t)
			if _, err := getH3(ctx, t, size); err != nil { // the handshake is not what is measured
				m.Failed = err.Error()
				return m, nil
			}
		}
		began := time.Now()
		for _, t := range dialed {
			for range streams {
				asking.Go(func() {
					for time.Since(began) < d {
						at := time.Now()
						n, err := getH3(ctx, t, size)
						bytes.Add(n)
						took := time.Since(at)
						mu.Lock()
						if err != nil && failed == nil {
							failed = err
						}
						over := failed != nil
						if !over {
							times.add(took)
						}
						mu.Unlock()
						if over {
							return
						}
					}
				})
			}
		}
		asking.Wait()
		if ctx.Err() != nil {
			return m, context.Cause(ctx)
		}
		if failed != nil {
			m.Failed = failed.Error()
		}
		m.Count, m.Bytes, m.Value = times.n, bytes.Load(), float64(times.n)/time.Since(began).Seconds()
		m.Mean, m.P50, m.P99 = times.mean(), times.quantile(0.5), times.quantile(0.99)
		return m, nil
	}
}
