//go:build linux

package bench

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"sync"
)

// loopName is how the loop is called in a report.
const loopName = "go-loop"

// maxRequest bounds what the loop reads of one request: more ends the connection.
const maxRequest = 8 << 10

// loopAnswer is what the loop writes, whatever it is asked: a head as long as servers have one, and a body. It is not to be stored, so that
// the loop is an origin for rows that must miss, too.
func loopAnswer(size int) []byte {
	return append(fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nDate: Mon, 02 Nov 2026 00:00:00 GMT\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n"+
		"Cache-Control: no-store\r\nEtag: \"%d\"\r\nLast-Modified: Mon, 02 Nov 2026 00:00:00 GMT\r\n\r\n", size, size), body(size)...)
}

// Loop is the least that a server in Go can do: for each connection a goroutine that reads a request and writes the same answer, parsing
// nothing. It is the limit that ours is measured beside, and the origin of rows that need a fast one. It returns when the context ends and
// all connections are closed.
func Loop(ctx context.Context, address string, size int) error {
	if size < 0 || size > maxBody {
		return fmt.Errorf("a body of %d bytes: want 0 to %d", size, maxBody)
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	return loopAt(ctx, l, size)
}

// loopAt is Loop where l listens, which it closes.
func loopAt(ctx context.Context, l net.Listener, size int) error {
	var mu sync.Mutex
	open := map[net.Conn]struct{}{}
	ended := false
	stop := context.AfterFunc(ctx, func() {
		mu.Lock()
		defer mu.Unlock()
		ended = true
		l.Close()
		for c := range open {
			c.Close()
		}
	})
	defer stop()
	answer := loopAnswer(size)
	var serving sync.WaitGroup
	defer serving.Wait()
	for {
		c, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		mu.Lock()
		if ended {
			c.Close()
		}
		open[c] = struct{}{}
		mu.Unlock()
		serving.Go(func() {
			loop(c, answer)
			c.Close()
			mu.Lock()
			delete(open, c)
			mu.Unlock()
		})
	}
}

// loop serves one connection. A request has no body, and its head may come in parts.
func loop(c net.Conn, answer []byte) {
	buf := make([]byte, maxRequest)
	n := 0
	for {
		got, err := c.Read(buf[n:])
		if err != nil {
			return
		}
		if n += got; !bytes.HasSuffix(buf[:n], []byte("\r\n\r\n")) {
			if n == len(buf) {
				return
			}
			continue
		}
		n = 0
		if _, err := c.Write(answer); err != nil {
			return
		}
	}
}

// goLoop is the loop as a peer: this program itself, as it is started with `bench loop`.
func goLoop(size int) Peer {
	return Peer{Name: loopName, Note: "no server: a loop in Go that reads and writes and parses nothing, the limit", Start: func(_ context.Context, s Stage) (*Process, error) {
		return s.Start(nil, s.Program, "bench", "loop", "{host}:{port}", fmt.Sprint(size))
	}}
}
