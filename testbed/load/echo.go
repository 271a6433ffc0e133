package load

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
)

// maxEchoes bounds the connections that Echo serves at once; those beyond are closed.
const maxEchoes = 2 * MaxFlows

// Echo is the other end of Flows: it sends back all it is sent, after a greeting, if that is not "", until the context
// ends, and closes the listener.
func Echo(ctx context.Context, l net.Listener, greeting string) {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { l.Close() })()
	slots := make(chan struct{}, maxEchoes)
	for {
		conn, err := l.Accept()
		if errors.Is(err, net.ErrClosed) || ctx.Err() != nil {
			return
		}
		if err != nil { // too many files are open, for one
			sleep(ctx, rest)
			continue
		}
		select {
		case slots <- struct{}{}:
		default:
			conn.Close()
			continue
		}
		wg.Go(func() {
			defer func() { <-slots }()
			defer conn.Close()
			defer context.AfterFunc(ctx, func() { conn.Close() })()
			if greeting != "" {
				if _, err := io.WriteString(conn, greeting+"\n"); err != nil {
					return
				}
			}
			io.Copy(conn, conn)
		})
	}
}

// EchoUDP is the other end of UDP: it sends back each datagram, until the context ends, and closes the socket.
func EchoUDP(ctx context.Context, conn net.PacketConn) {
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	b := make([]byte, maxPacket)
	for {
		n, from, err := conn.ReadFrom(b)
		if err != nil {
			if ctx.Err() != nil || plain(err) != "refused" {
				return
			}
			continue
		}
		conn.WriteTo(b[:n], from) // what cannot be sent is lost
	}
}
