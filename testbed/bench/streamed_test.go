//go:build linux

package bench

import (
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

// streamRelay passes TCP on to a target until the test ends. back says what becomes of what comes back.
func streamRelay(t *testing.T, back func(dst io.Writer, src io.Reader)) (address, target string) {
	t.Helper()
	port, err := freePort("127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	behind := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer client.Close()
				far, err := net.DialTCP("tcp", nil, behind)
				if err != nil {
					return
				}
				defer far.Close()
				serving.Go(func() {
					io.Copy(far, client)
					far.Close()
				})
				back(client, far)
			})
		}
	})
	t.Cleanup(func() { l.Close(); serving.Wait() })
	return l.Addr().String(), behind.String()
}

func TestStreamsThroughARelayAreCountedAndLookedAt(t *testing.T) {
	copies := func(dst io.Writer, src io.Reader) { io.Copy(dst, src) }
	for _, c := range []struct {
		name   string
		short  bool
		back   func(dst io.Writer, src io.Reader)
		failed string
	}{
		{"long", false, copies, ""},
		{"short", true, copies, ""},
		{"cut short", true, func(dst io.Writer, src io.Reader) { io.CopyN(dst, src, 10) }, errStreamed.Error()},
		{"changed", false, func(dst io.Writer, src io.Reader) { io.WriteString(dst, "x"); io.Copy(dst, src) }, errStreamed.Error()},
		{"closed", false, func(dst io.Writer, src io.Reader) { io.CopyN(dst, src, 1<<20) }, io.EOF.Error()},
	} {
		t.Run(c.name, func(t *testing.T) {
			address, target := streamRelay(t, c.back)
			m, err := (&streamed{address: address, target: target, flows: 2, short: c.short, last: 200 * time.Millisecond}).run(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if c.failed == "" && (m.Failed != "" || c.short && m.Count == 0 || m.Value <= 0 || m.Bytes == 0) || !strings.Contains(m.Failed, c.failed) {
				t.Errorf("measured %+v", m)
			}
		})
	}
}
