package bed

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/perigee-net/perigee/testbed/wan"
)

// TraceStep is what one server answered on the way of a lookup.
type TraceStep struct {
	Server  string // host
	Role    string // resolver, root, TLD, authority
	Address netip.Addr
	Took    time.Duration
	Answer  string // its code and its records as in a zone file; or why there is none
}

const (
	// lookupTime bounds one question to a resolver, which may have to ask servers that are dead first.
	lookupTime = 10 * time.Second
	// serverTime bounds one to a name server.
	serverTime = 3 * time.Second
	// maxTrace bounds how many servers are asked.
	maxTrace = 16
	// maxDNS is the largest answer that is taken by UDP, in bytes, as is said by EDNS (RFC 6891).
	maxDNS = 1232
)

// Trace looks a name up as seen from a host: it asks the resolver of the host's site, and then, as that resolver would that
// has forgotten everything, the root, the TLD and the authority. A server that does not answer is a step too.
func (b *Bed) Trace(ctx context.Context, from, name, qtype string) ([]TraceStep, error) {
	kind, ok := dnsTypes()[strings.ToUpper(qtype)]
	if !ok {
		return nil, fmt.Errorf("trace: no type %.20q of records: there are A AAAA CNAME MX NS PTR SOA SRV TXT", qtype)
	}
	asked, err := dnsmessage.NewName(strings.TrimSuffix(name, ".") + ".")
	if err != nil {
		return nil, fmt.Errorf("trace %.300q: %w", name, err)
	}
	w := b.World()
	site := from
	if _, isSite := w.Site(from); !isSite {
		h, err := b.machine(from)
		if err != nil {
			return nil, err
		}
		site = h.Site
	}
	i := slices.IndexFunc(w.Hosts, func(h wan.Host) bool { return h.Kind == wan.Resolver && h.Site == site })
	if i < 0 {
		return nil, fmt.Errorf("trace: the site %s has no resolver", site)
	}
	resolver := w.Hosts[i]
	asker := from
	if asker == site {
		asker = resolver.Name
	}
	question := dnsmessage.Question{Name: asked, Type: kind, Class: dnsmessage.ClassINET}
	once := func(from, server, role string, at netip.Addr, recurse bool, most time.Duration) (TraceStep, *dnsmessage.Message) {
		began := time.Now()
		once, cancel := context.WithTimeout(ctx, most)
		defer cancel()
		m, err := ask(once, b.Dial(from), netip.AddrPortFrom(at, 53), question, recurse)
		s := TraceStep{Server: server, Role: role, Address: at, Took: time.Since(began)}
		if s.Answer = tellAnswer(m); err != nil {
			s.Answer = err.Error()
		}
		return s, m
	}
	step, _ := once(asker, resolver.Name, "resolver", resolver.V4, true, lookupTime)
	steps := []TraceStep{step}
	roots := hostsOf(w, wan.Root)
	if len(roots) == 0 {
		return steps, nil
	}
	next := []netip.Addr{roots[0].V4}
	for depth := 0; len(next) > 0 && len(steps) < maxTrace; {
		at := next[0]
		next = next[1:]
		step, m := once(resolver.Name, hostAt(w, at), role(w, at), at, false, serverTime)
		steps = append(steps, step)
		if ctx.Err() != nil {
			return steps, ctx.Err()
		}
		if m == nil {
			continue // the next of its servers
		}
		servers := referral(w, site, m)
		if len(m.Answers) > 0 || m.Authoritative || len(servers) == 0 {
			break
		}
		if depth++; depth > maxTrace {
			break
		}
		next = servers
	}
	return steps, nil
}

func dnsTypes() map[string]dnsmessage.Type {
	return map[string]dnsmessage.Type{
		"A": dnsmessage.TypeA, "AAAA": dnsmessage.TypeAAAA, "CNAME": dnsmessage.TypeCNAME, "MX": dnsmessage.TypeMX,
		"NS": dnsmessage.TypeNS, "PTR": dnsmessage.TypePTR, "SOA": dnsmessage.TypeSOA, "SRV": dnsmessage.TypeSRV, "TXT": dnsmessage.TypeTXT,
	}
}

// hostAt is the name of the host that has an address, or the address.
func hostAt(w *wan.World, a netip.Addr) string {
	for _, h := range w.Hosts {
		if h.V4 == a || h.V6 == a {
			return h.Name
		}
	}
	return a.String()
}

// role is what a name server is for.
func role(w *wan.World, a netip.Addr) string {
	h, _ := w.Host(hostAt(w, a))
	switch h.Kind {
	case wan.Root:
		return "root"
	case wan.TLD:
		return "TLD"
	}
	return "authority"
}

// referral is where an answer that is none leads to: the IPv4 addresses of the servers it names, nearest to the site first.
func referral(w *wan.World, site string, m *dnsmessage.Message) []netip.Addr {
	var list []netip.Addr
	for _, ns := range m.Authorities {
		server, ok := ns.Body.(*dnsmessage.NSResource)
		if !ok {
			continue
		}
		for _, glue := range m.Additionals {
			if a, ok := glue.Body.(*dnsmessage.AResource); ok && strings.EqualFold(glue.Header.Name.String(), server.NS.String()) {
				list = append(list, netip.AddrFrom4(a.A))
			}
		}
	}
	slices.SortStableFunc(list, func(a, b netip.Addr) int {
		return int(w.RTT(site, hostAt(w, a)) - w.RTT(site, hostAt(w, b)))
	})
	return list
}

// ask asks one server, by UDP and, if the answer does not fit, by TCP.
func ask(ctx context.Context, dial func(context.Context, string, string) (net.Conn, error), at netip.AddrPort, q dnsmessage.Question, recurse bool) (*dnsmessage.Message, error) {
	var edns dnsmessage.ResourceHeader
	if err := edns.SetEDNS0(maxDNS, dnsmessage.RCodeSuccess, false); err != nil {
		return nil, err
	}
	asked := dnsmessage.Message{
		Header:      dnsmessage.Header{ID: uint16(rand.Uint32()), RecursionDesired: recurse},
		Questions:   []dnsmessage.Question{q},
		Additionals: []dnsmessage.Resource{{Header: edns, Body: &dnsmessage.OPTResource{}}},
	}
	packed, err := asked.Pack()
	if err != nil {
		return nil, fmt.Errorf("ask: %w", err)
	}
	m, err := exchange(ctx, dial, "udp", at, packed, asked)
	if err == nil && m.Truncated {
		m, err = exchange(ctx, dial, "tcp", at, packed, asked)
	}
	return m, err
}

func exchange(ctx context.Context, dial func(context.Context, string, string) (net.Conn, error), network string, at netip.AddrPort, packed []byte, asked dnsmessage.Message) (*dnsmessage.Message, error) {
	conn, err := dial(ctx, network, at.String())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })()
	if network == "tcp" {
		packed = append(binary.BigEndian.AppendUint16(nil, uint16(len(packed))), packed...)
	}
	if _, err := conn.Write(packed); err != nil {
		return nil, err
	}
	for {
		data, err := readMessage(conn, network)
		if err != nil {
			if ctx.Err() != nil {
				return nil, errors.New("no answer")
			}
			return nil, err
		}
		var m dnsmessage.Message
		if err := m.Unpack(data); err != nil {
			return nil, fmt.Errorf("not a DNS message: %w", err)
		}
		if m.ID == asked.ID && m.Response && len(m.Questions) == 1 && m.Questions[0].Type == asked.Questions[0].Type {
			return &m, nil
		}
		if network == "tcp" {
			return nil, errors.New("the answer is to another question")
		}
	}
}

func readMessage(conn net.Conn, network string) ([]byte, error) {
	if network == "udp" {
		data := make([]byte, 65_535)
		n, err := conn.Read(data)
		return data[:n], err
	}
	var size [2]byte
	if _, err := io.ReadFull(conn, size[:]); err != nil {
		return nil, err
	}
	data := make([]byte, binary.BigEndian.Uint16(size[:]))
	_, err := io.ReadFull(conn, data)
	return data, err
}

// tellAnswer is an answer in one line: its code, and its records, or the servers it leads to, sorted.
func tellAnswer(m *dnsmessage.Message) string {
	if m == nil {
		return ""
	}
	text := strings.ToUpper(strings.TrimPrefix(m.RCode.String(), "RCode"))
	switch m.RCode {
	case dnsmessage.RCodeSuccess:
		text = "NOERROR"
	case dnsmessage.RCodeNameError:
		text = "NXDOMAIN"
	case dnsmessage.RCodeServerFailure:
		text = "SERVFAIL"
	}
	if m.Authoritative {
		text += " aa"
	}
	list, word := m.Answers, ""
	if len(list) == 0 {
		list, word = m.Authorities, "refers to "
		if m.Authoritative || m.RecursionAvailable {
			word = "authority: "
		}
	}
	var records []string
	for _, r := range list {
		records = append(records, tellRecord(r))
	}
	slices.Sort(records)
	if len(records) > 0 {
		text += " " + word + strings.Join(records, ", ")
	}
	return text
}

func tellRecord(r dnsmessage.Resource) string {
	head := fmt.Sprintf("%s %d %s ", r.Header.Name, r.Header.TTL, strings.TrimPrefix(r.Header.Type.String(), "Type"))
	switch body := r.Body.(type) {
	case *dnsmessage.AResource:
		return head + netip.AddrFrom4(body.A).String()
	case *dnsmessage.AAAAResource:
		return head + netip.AddrFrom16(body.AAAA).String()
	case *dnsmessage.NSResource:
		return head + body.NS.String()
	case *dnsmessage.CNAMEResource:
		return head + body.CNAME.String()
	case *dnsmessage.PTRResource:
		return head + body.PTR.String()
	case *dnsmessage.MXResource:
		return head + fmt.Sprint(body.Pref, " ", body.MX)
	case *dnsmessage.SOAResource:
		return head + fmt.Sprint(body.NS, " ", body.MBox, " ", body.Serial)
	case *dnsmessage.SRVResource:
		return head + fmt.Sprint(body.Priority, " ", body.Weight, " ", body.Port, " ", body.Target)
	case *dnsmessage.TXTResource:
		var words []string
		for _, t := range body.TXT {
			words = append(words, fmt.Sprintf("%q", t))
		}
		return head + strings.Join(words, " ")
	}
	return strings.TrimSpace(head)
}
