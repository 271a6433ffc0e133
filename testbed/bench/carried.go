//go:build linux

package bench

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"io"
	"math/big"
	"net"
	"sync"
	"time"

	"github.com/quic-go/quic-go"
)

// How the carry goes from its one end to its other.
const (
	ByQUIC = "quic" // by a bare stream of quic-go
	ByTLS  = "tls"  // by TLS over TCP
)

// carryRoom is how much the carry reads or writes at once: what a relay of ours does.
const carryRoom = 64 << 10

// carrier is an end of what lies between the two halves of the carry.
type carrier interface {
	io.ReadWriteCloser
	CloseWrite() error
}

// Carry is the least that two nodes in Go can do that carry flows of TCP between them: what comes to the address goes by a connection under
// TLS 1.3 over the loopback, both of whose ends are in this process, and from there to the target, byte for byte, and back. It knows no names,
// no health and no choice. It is the limit that ours is measured beside. It returns when the context ends.
func Carry(ctx context.Context, way, address, target string) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	return carryFrom(ctx, way, l, target)
}

// carryFrom is Carry where l listens, which it closes.
func carryFrom(ctx context.Context, way string, l net.Listener, target string) error {
	defer l.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var working sync.WaitGroup
	defer working.Wait()
	arrived := func(far carrier) {
		working.Go(func() {
			c, err := net.Dial("tcp", target)
			if err != nil {
				far.Close()
				return
			}
			carry(ctx, c.(*net.TCPConn), far)
		})
	}
	var dial func() (carrier, error)
	var err error
	switch way {
	case ByQUIC:
		dial, err = carryByQUIC(ctx, &working, arrived)
	case ByTLS:
		dial, err = carryByTLS(ctx, &working, arrived)
	default:
		err = fmt.Errorf("%q: want %s or %s", way, ByQUIC, ByTLS)
	}
	if err != nil {
		return err
	}
	return accepted(ctx, l, func(c net.Conn) {
		working.Go(func() {
			far, err := dial()
			if err != nil {
				c.Close()
				return
			}
			carry(ctx, c.(*net.TCPConn), far)
		})
	})
}

// accepted calls each with every connection that comes to l, and closes l when the context ends.
func accepted(ctx context.Context, l net.Listener, each func(net.Conn)) error {
	defer context.AfterFunc(ctx, func() { l.Close() })()
	for {
		c, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		each(c)
	}
}

// carry copies both ways until both have ended, or the context has.
func carry(ctx context.Context, near *net.TCPConn, far carrier) {
	defer far.Close()
	defer near.Close()
	defer context.AfterFunc(ctx, func() { near.Close(); far.Close() })()
	var back sync.WaitGroup
	copied := func(to, from carrier) {
		room := make([]byte, carryRoom)
		// As it is read, and not by what package net has for two sockets: neither end is one.
		if _, err := io.CopyBuffer(struct{ io.Writer }{to}, struct{ io.Reader }{from}, room); err != nil {
			near.SetLinger(0)
			near.Close()
			far.Close()
			return
		}
		to.CloseWrite()
	}
	back.Go(func() { copied(near, far) })
	copied(far, near)
	back.Wait()
}

const carryALPN = "carry"

func carryByTLS(ctx context.Context, working *sync.WaitGroup, arrived func(carrier)) (func() (carrier, error), error) {
	server, client, err := carryTLS()
	if err != nil {
		return nil, err
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", server)
	if err != nil {
		return nil, err
	}
	context.AfterFunc(ctx, func() { l.Close() })
	working.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			arrived(c.(*tls.Conn))
		}
	})
	return func() (carrier, error) { return tls.Dial("tcp", l.Addr().String(), client) }, nil
}

// quicCarrier is a stream that Close ends both ways.
type quicCarrier struct{ *quic.Stream }

func (c quicCarrier) CloseWrite() error { return c.Stream.Close() }

func (c quicCarrier) Close() error {
	c.CancelRead(0)
	c.CancelWrite(0) // nothing, if it has ended
	return nil
}

const (
	carryWindow = 256 << 20 // the backbone's
	carryOpens  = 1         // the first byte of a stream
)

func carryByQUIC(ctx context.Context, working *sync.WaitGroup, arrived func(carrier)) (func() (carrier, error), error) {
	server, client, err := carryTLS()
	if err != nil {
		return nil, err
	}
	config := &quic.Config{InitialConnectionReceiveWindow: carryWindow, MaxConnectionReceiveWindow: carryWindow, MaxIncomingStreams: 1000, MaxIdleTimeout: time.Hour, KeepAlivePeriod: time.Second}
	l, err := quic.ListenAddr("127.0.0.1:0", server, config)
	if err != nil {
		return nil, err
	}
	context.AfterFunc(ctx, func() { l.Close() })
	working.Go(func() {
		conn, err := l.Accept(ctx)
		if err != nil {
			return
		}
		for {
			s, err := conn.AcceptStream(ctx)
			if err != nil {
				return
			}
			var first [1]byte
			if _, err := io.ReadFull(s, first[:]); err == nil {
				arrived(quicCarrier{s})
			}
		}
	})
	conn, err := quic.DialAddr(ctx, l.Addr().String(), client, config)
	if err != nil {
		l.Close()
		return nil, err
	}
	context.AfterFunc(ctx, func() { conn.CloseWithError(0, "") })
	return func() (carrier, error) {
		s, err := conn.OpenStreamSync(ctx)
		if err != nil {
			return nil, err
		}
		// The other end hears of a stream by its first byte, and a client may wait for the target to speak.
		if _, err := s.Write([]byte{carryOpens}); err != nil {
			return nil, err
		}
		return quicCarrier{s}, nil
	}, nil
}

// carryTLS is what the two ends of the carry show each other: a certificate as nodes have them.
func carryTLS() (server, client *tls.Config, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: Name}, DNSNames: []string{Name}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, nil, err
	}
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	shown := []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}
	server = &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: []string{carryALPN}, Certificates: shown, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert}
	client = &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: []string{carryALPN}, Certificates: shown, RootCAs: pool, ServerName: Name}
	return server, client, nil
}

// goCarry is the carry as a peer: this program itself, as it is started with `bench carry`.
func goCarry(way string) Peer {
	note := "no node: two ends in Go that copy to and from "
	if way == ByQUIC {
		note += "a bare quic-go stream, in one process, the limit"
	} else {
		note += "a TLS connection, in one process, the limit"
	}
	return Peer{Name: "go-" + way, Note: note, Start: func(_ context.Context, s Stage) (*Process, error) {
		return s.Start(nil, s.Program, "bench", "carry", way, "{host}:{port}", "{host}:{tls}")
	}}
}
