//go:build linux

package bench

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// getting is one request whose right answer is known.
type getting struct {
	address string // HOST:PORT to dial
	url     string
	size    int // of the body, which is body(size)
	cert    string
	h2      bool
}

// get makes a request on a connection of its own, and says what is wrong with the answer.
func get(ctx context.Context, g getting) (http.Header, error) {
	t := &http.Transport{DisableCompression: true, DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, g.address)
	}}
	defer t.CloseIdleConnections()
	if g.cert != "" {
		var err error
		if t.TLSClientConfig, err = trusting(g.cert); err != nil {
			return nil, err
		}
		t.Protocols = new(http.Protocols)
		t.Protocols.SetHTTP1(!g.h2)
		t.Protocols.SetHTTP2(g.h2)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, g.url, nil)
	if err != nil {
		return nil, err
	}
	res, err := t.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	got, err := io.ReadAll(io.LimitReader(res.Body, maxBody))
	switch {
	case err != nil:
		return nil, fmt.Errorf("read the body: %w", err)
	case res.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("%s is answered %s", g.url, res.Status)
	case !bytes.Equal(got, body(g.size)):
		return nil, fmt.Errorf("%s has a body of %d bytes that is not the one of %d", g.url, len(got), g.size)
	case g.h2 != (res.ProtoMajor == 2):
		return nil, fmt.Errorf("%s is answered by %s", g.url, res.Proto)
	case g.cert != "" && res.TLS.Version != tls.VersionTLS13:
		return nil, fmt.Errorf("%s is answered by %s", g.url, tls.VersionName(res.TLS.Version))
	}
	return res.Header, nil
}

// asking is one DNS query.
type asking struct {
	address string
	network string // udp, tcp, dot (RFC 7858), doh (RFC 8484)
	name    string
	subnet  netip.Prefix  // of the client, by EDNS (RFC 7871); zero: none
	cert    string        // of who is asked in TLS
	wait    time.Duration // for the answer; 0: a second
}

// answered is what matters of the answer.
type answered struct {
	code          dnsmessage.RCode
	authoritative bool
	addresses     []netip.Addr
	size          int
}

// clientSubnet is the number of the EDNS option (RFC 7871, 6).
const clientSubnet = 8

// question is a query in wire format, as a resolver sends it.
func question(id uint16, name string, subnet netip.Prefix) ([]byte, error) {
	n, err := dnsmessage.NewName(name)
	if err != nil {
		return nil, fmt.Errorf("name %q: %w", name, err)
	}
	b := dnsmessage.NewBuilder(nil, dnsmessage.Header{ID: id})
	if err := b.StartQuestions(); err != nil {
		return nil, err
	}
	if err := b.Question(dnsmessage.Question{Name: n, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}); err != nil {
		return nil, err
	}
	if subnet.IsValid() {
		if err := b.StartAdditionals(); err != nil {
			return nil, err
		}
		var h dnsmessage.ResourceHeader
		if err := h.SetEDNS0(1232, dnsmessage.RCodeSuccess, false); err != nil {
			return nil, err
		}
		address := subnet.Masked().Addr().AsSlice()[:(subnet.Bits()+7)/8]
		option := append([]byte{0, 1, byte(subnet.Bits()), 0}, address...) // family 1: IPv4
		if err := b.OPTResource(h, dnsmessage.OPTResource{Options: []dnsmessage.Option{{Code: clientSubnet, Data: option}}}); err != nil {
			return nil, err
		}
	}
	return b.Finish()
}

// ask asks once.
func ask(ctx context.Context, a asking) (res answered, err error) {
	id := uint16(rand.Uint32())
	query, err := question(id, a.name, a.subnet)
	if err != nil {
		return res, err
	}
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(a.wait, time.Second))
	defer cancel()
	send := overSocket
	if a.network == "doh" {
		send = overHTTPS
	}
	m, err := send(ctx, a, query)
	if err != nil {
		return res, fmt.Errorf("ask %s by %s: %w", a.name, a.network, err)
	}
	var p dnsmessage.Parser
	h, err := p.Start(m)
	if err != nil {
		return res, fmt.Errorf("answer for %s: %w", a.name, err)
	}
	if h.ID != id || !h.Response {
		return res, fmt.Errorf("what came for %s is no answer to it", a.name)
	}
	res.code, res.authoritative, res.size = h.RCode, h.Authoritative, len(m)
	if err := p.SkipAllQuestions(); err != nil {
		return res, err
	}
	all, err := p.AllAnswers()
	if err != nil {
		return res, err
	}
	for _, r := range all {
		if found, ok := r.Body.(*dnsmessage.AResource); ok {
			res.addresses = append(res.addresses, netip.AddrFrom4(found.A))
		}
	}
	return res, nil
}

// overSocket sends a query, and returns the answer, by UDP, TCP or TLS.
func overSocket(ctx context.Context, a asking, query []byte) (m []byte, err error) {
	var conn net.Conn
	if a.network == "dot" {
		t, err := trusting(a.cert)
		if err != nil {
			return nil, err
		}
		conn, err = (&tls.Dialer{Config: t}).DialContext(ctx, "tcp", a.address)
		if err != nil {
			return nil, err
		}
	} else if conn, err = new(net.Dialer).DialContext(ctx, a.network, a.address); err != nil {
		return nil, err
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	conn.SetDeadline(deadline)
	stream := a.network != "udp"
	if stream {
		query = append(binary.BigEndian.AppendUint16(nil, uint16(len(query))), query...)
	}
	if _, err := conn.Write(query); err != nil {
		return nil, err
	}
	buf := make([]byte, 65535)
	n := 0
	if stream {
		if _, err = io.ReadFull(conn, buf[:2]); err == nil {
			n, err = io.ReadFull(conn, buf[:binary.BigEndian.Uint16(buf)])
		}
	} else {
		n, err = conn.Read(buf)
	}
	return buf[:n], err
}

// dohURI is where a query is answered that is asked by GET (RFC 8484, 4.1), as the load asks.
func dohURI(query []byte) string {
	return "https://" + Name + dohPath + "?dns=" + base64.RawURLEncoding.EncodeToString(query)
}

// overHTTPS does the same by HTTP/2.
func overHTTPS(ctx context.Context, a asking, query []byte) ([]byte, error) {
	config, err := trusting(a.cert)
	if err != nil {
		return nil, err
	}
	t := &http.Transport{TLSClientConfig: config, Protocols: new(http.Protocols), DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, a.address)
	}}
	t.Protocols.SetHTTP2(true)
	defer t.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, dohURI(query), nil)
	if err != nil {
		return nil, err
	}
	res, err := t.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("it is answered %s", res.Status)
	}
	return io.ReadAll(io.LimitReader(res.Body, 65535))
}

// trusting is a client that trusts a certificate of Name.
func trusting(cert string) (*tls.Config, error) {
	pem, err := os.ReadFile(cert)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	return &tls.Config{RootCAs: pool, ServerName: Name}, nil
}

// answers says what is wrong with an answer that is to be one address, or with a zero address NXDOMAIN.
func answers(ctx context.Context, a asking, want netip.Addr) error {
	got, err := ask(ctx, a)
	switch {
	case err != nil:
		return err
	case !got.authoritative:
		return fmt.Errorf("the answer for %s is not authoritative (%v)", a.name, got.code)
	case !want.IsValid():
		if got.code != dnsmessage.RCodeNameError || len(got.addresses) > 0 {
			return fmt.Errorf("%s, which does not exist, is answered %v, %v", a.name, got.code, got.addresses)
		}
	case got.code != dnsmessage.RCodeSuccess || len(got.addresses) != 1 || got.addresses[0] != want:
		return fmt.Errorf("%s (client %v) is answered %v, %v, not %v", a.name, a.subnet, got.code, got.addresses, want)
	}
	return nil
}

// at is where a server is asked.
func (s Stage) at(port int) string { return net.JoinHostPort(s.Host, strconv.Itoa(port)) }
