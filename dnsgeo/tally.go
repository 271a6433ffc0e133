package dnsgeo

import (
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/miekg/dns"

	"github.com/perigee-net/perigee/dnsgeo/policy"
	"github.com/perigee-net/perigee/dnsgeo/zone"
)

const (
	// maxSeats is how many zones are counted by name: the first that are asked for. Others are counted together.
	maxSeats = 100
	// maxTallies is how many processors count each for itself; more share.
	maxTallies = 64
)

// Other is what is counted together: zones beyond the bound, types and rcodes that are rare.
const Other = "other"

// elsewhere is the seat of other zones; nobody has seat 0.
const elsewhere = 1

// countedRcodes are the rcodes that are told apart, the last of them for all others; countedTypes likewise.
var (
	countedRcodes = [...]string{"NOERROR", "NXDOMAIN", "SERVFAIL", Other}
	countedTypes  = [...]uint16{
		dns.TypeA, dns.TypeAAAA, dns.TypeANY, dns.TypeCAA, dns.TypeCNAME, dns.TypeDNAME, dns.TypeDNSKEY, dns.TypeDS, dns.TypeHTTPS,
		dns.TypeMX, dns.TypeNAPTR, dns.TypeNS, dns.TypePTR, dns.TypeSOA, dns.TypeSPF, dns.TypeSRV, dns.TypeSSHFP, dns.TypeSVCB,
		dns.TypeTLSA, dns.TypeTXT,
	}
)

const policies = int(policy.CIDR) + 1

// byRcode is how many answers there were of each of countedRcodes.
type byRcode [len(countedRcodes)]atomic.Uint64

// tally is what one processor counts, or some.
type tally struct {
	zones    [elsewhere + 1 + maxSeats]byRcode // by seat
	types    [len(countedTypes) + 1]byRcode
	policies [policies]byRcode
}

// tallies count answers by zone, type and policy, without waiting for each other: who answers counts by a tally that few others use.
type tallies struct {
	all   []tally
	next  atomic.Uint64
	place [dns.TypeCAA + 1]uint8 // that of each type among countedTypes, of which CAA has the greatest number

	mu    sync.Mutex
	seats map[string]uint32 // of zones, by name: what was counted stays so when the zone changes, or goes
	names []string          // by seat
}

func newTallies() *tallies {
	t := &tallies{all: make([]tally, min(runtime.GOMAXPROCS(0), maxTallies)), seats: map[string]uint32{}, names: []string{"", Other}}
	for i := range t.place {
		t.place[i] = uint8(len(countedTypes))
	}
	for i, typ := range countedTypes {
		t.place[typ] = uint8(i)
	}
	return t
}

// one is a tally for somebody.
func (t *tallies) one() *tally { return &t.all[t.next.Add(1)%uint64(len(t.all))] }

// seat is the zone's, which it is given if there is one left.
func (t *tallies) seat(z *zone.Zone) uint32 {
	if seat := z.Seat().Load(); seat > 0 {
		return seat
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	seat, has := t.seats[z.Name]
	switch {
	case has:
	case len(t.seats) == maxSeats:
		seat = elsewhere
	default:
		seat = uint32(len(t.names))
		t.names = append(t.names, z.Name)
		t.seats[z.Name] = seat
	}
	z.Seat().Store(seat)
	return seat
}

// count counts an answer that a zone gave.
func (t *tallies) count(to *tally, a *asker) {
	rcode := len(countedRcodes) - 1
	switch a.reply.Rcode {
	case dns.RcodeSuccess:
		rcode = 0
	case dns.RcodeNameError:
		rcode = 1
	case dns.RcodeServerFailure:
		rcode = 2
	}
	place := uint8(len(countedTypes))
	if int(a.query.Type) < len(t.place) {
		place = t.place[a.query.Type]
	}
	to.zones[t.seat(a.zone)][rcode].Add(1)
	to.types[place][rcode].Add(1)
	for p, bits := 0, a.policies; bits != 0; p, bits = p+1, bits>>1 {
		if bits&1 != 0 {
			to.policies[p][rcode].Add(1)
		}
	}
}

// sum emits what all tallies have of something.
func (t *tallies) sum(name string, emit func(n uint64, labels ...string), of func(*tally) *byRcode) {
	for rcode, label := range countedRcodes {
		n := uint64(0)
		for i := range t.all {
			n += of(&t.all[i])[rcode].Load()
		}
		if n > 0 {
			emit(n, name, label)
		}
	}
}

// AnswersByZone emits how many answers a zone gave with an rcode.
func (s *Server) AnswersByZone(emit func(n uint64, labels ...string)) {
	t := s.tallies
	t.mu.Lock()
	names := t.names
	t.mu.Unlock()
	for seat, name := range names {
		t.sum(plainName(name), emit, func(of *tally) *byRcode { return &of.zones[seat] })
	}
}

// plainName is the name of a zone as a spec has it, without the last dot.
func plainName(name string) string {
	if n := len(name) - 1; n > 0 && name[n] == '.' {
		return name[:n]
	}
	return name
}

// AnswersByType emits how many answers to questions of a type had an rcode.
func (s *Server) AnswersByType(emit func(n uint64, labels ...string)) {
	for i := range len(countedTypes) + 1 {
		name := Other
		if i < len(countedTypes) {
			name = dns.TypeToString[countedTypes[i]]
		}
		s.tallies.sum(name, emit, func(of *tally) *byRcode { return &of.types[i] })
	}
}

// AnswersByPolicy emits how many answers in whose choice a policy took part had an rcode. One through a tree of aliases is counted
// under each policy of the tree that it came by.
func (s *Server) AnswersByPolicy(emit func(n uint64, labels ...string)) {
	for p := range policies {
		s.tallies.sum(policy.Policy(p).String(), emit, func(of *tally) *byRcode { return &of.policies[p] })
	}
}
