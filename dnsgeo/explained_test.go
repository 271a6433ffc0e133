package dnsgeo

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/perigee-net/perigee/cluster/health"
	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/trace"
	"github.com/perigee-net/perigee/cluster/view"
	"github.com/perigee-net/perigee/dnsgeo/policy"
)

// answersVariable says how many random queries TestWhatIsExplainedIsWhatIsServed asks (make verify: a million).
const answersVariable = "PERIGEE_ANSWERS"

const (
	fewAnswers = 4000
	perWorld   = 250 // queries to one spec, of which a view has perView
	perView    = 25
)

// Over random zones, views and clients, what the server sends is what Explain tells: read by another's eyes (miekg/dns) from the bytes.
func TestWhatIsExplainedIsWhatIsServed(t *testing.T) {
	n := fewAnswers
	if text := os.Getenv(answersVariable); text != "" {
		var err error
		if n, err = strconv.Atoi(text); err != nil {
			t.Fatalf("%s: %v", answersVariable, err)
		}
	}
	seen := map[string]int{}
	for world := uint64(0); n > 0; world++ {
		asked := min(n, perWorld)
		n -= asked
		chance := &chance{rand.New(rand.NewPCG(7, world))}
		tellAndServe(t, chance, asked, seen)
		if t.Failed() {
			t.Fatalf("world %d", world)
		}
	}
	// What never came up was not tried.
	for _, kind := range []string{
		"NOERROR", "NXDOMAIN", "REFUSED", "SERVFAIL", "referral", "chain", "DNAME", "scope", "truncated", "empty", "wildcard",
		"simple", "weighted", "latency", "failover", "geolocation", "multivalue", "geoproximity", "CIDR", "alias",
	} {
		if seen[kind] == 0 {
			t.Errorf("no answer had %s", kind)
		}
	}
	t.Log(seen)
}

func tellAndServe(t *testing.T, c *chance, asked int, seen map[string]int) {
	world, names := c.world(t)
	var now *view.View
	s := New(Config{View: func() *view.View { return now }, Geo: places(t), Name: "icn1-a"})
	if err := s.Apply(world); err != nil {
		t.Fatal(err)
	}
	d := s.newDesk()
	d.asker.recents = new(recents)
	var random uint64
	d.random = func() uint64 { return random }
	room := make([]byte, 0, roomSize)
	var before []Query
	for i := range asked {
		if i%perView == 0 {
			now = c.view()
		}
		if i == asked/2 { // other tables, with other zones in part
			if world, names = c.world(t); s.Apply(world) != nil {
				t.Fatal("the second spec is refused")
			}
		}
		random = c.Uint64()
		q := c.query(names)
		if len(before) > 0 && c.IntN(3) == 0 { // what is remembered of a client is asked for
			known := before[c.IntN(len(before))]
			q.Client, q.ECS = known.Client, known.ECS
			if c.IntN(2) == 0 {
				q.Name, q.Type = known.Name, known.Type
			}
		}
		before = append(before, q)
		by := []Transport{UDP, TCP, TCP}[c.IntN(3)]
		response := d.respond(room, c.message(t, &q), q.Client, by)
		var got dns.Msg
		if err := got.Unpack(response); err != nil {
			t.Fatalf("%+v: %v", q, err)
		}
		q.Random = random
		tr := new(trace.Trace)
		want := s.table.Load().Answer(now, q, tr)
		if fault := differs(&got, &want, &q, seen); fault != "" {
			t.Errorf("%s %s, of %v and %v: %s\nserved\n%s\nexplained\n%s%s", q.Name, dns.Type(q.Type), q.Client, q.ECS, fault, &got, shown(want), reasons(tr))
			return
		}
		count(seen, tr, &want)
		for p := policy.Simple; p <= policy.CIDR; p++ {
			if d.asker.policies&(1<<p) != 0 {
				seen[p.String()]++
			}
		}
		if q.ECS.IsValid() && q.ECS.IsSingleIP() && q.Class == dns.ClassINET && q.Type != 65400 && !got.Truncated {
			told, err := s.table.Load().Explain(now, q.Name, dns.Type(q.Type).String(), q.ECS.Addr(), netip.Prefix{}, random)
			if err != nil {
				t.Fatal(err)
			}
			if told.Rcode != dns.RcodeToString[got.Rcode] || told.Scope != want.Scope ||
				!slices.Equal(lowered(told.Answer), lowered(text(got.Answer))) || !slices.Equal(lowered(told.Authority), lowered(text(got.Ns))) {
				t.Errorf("%s %s: explained %+v, served\n%s", q.Name, dns.Type(q.Type), told, &got)
				return
			}
		}
	}
}

func reasons(tr *trace.Trace) string {
	var b strings.Builder
	for _, l := range tr.Lines() {
		fmt.Fprintf(&b, "%v\n", l)
	}
	return b.String()
}

// count notes which kinds of answers came up.
func count(seen map[string]int, tr *trace.Trace, a *Answer) {
	seen[dns.RcodeToString[a.Rcode]]++
	if a.Referral {
		seen["referral"]++
	}
	if a.Scope > 0 {
		seen["scope"]++
	}
	if a.Rcode == dns.RcodeSuccess && len(a.Answer) == 0 && !a.Referral {
		seen["empty"]++
	}
	for _, rr := range a.Answer {
		switch rr.(type) {
		case *dns.CNAME:
			seen["chain"]++
		case *dns.DNAME:
			seen["DNAME"]++
		}
	}
	for _, l := range tr.Lines() {
		if strings.Contains(l.Text, ": by *") {
			seen["wildcard"]++
		}
		if strings.Contains(l.Text, "alias of") {
			seen["alias"]++
		}
	}
}

// differs says in what a response is not the answer.
func differs(got *dns.Msg, want *Answer, q *Query, seen map[string]int) string {
	if got.Rcode != want.Rcode || got.Authoritative != want.Authoritative {
		return "the header"
	}
	if got.Question[0].Name != q.Name {
		return "the question"
	}
	for _, o := range options(got) {
		if e, ok := o.(*dns.EDNS0_SUBNET); ok && int(e.SourceScope) != want.Scope {
			return "the scope"
		}
	}
	extra := slices.DeleteFunc(slices.Clone(got.Extra), func(rr dns.RR) bool { return rr.Header().Rrtype == dns.TypeOPT })
	sections := []struct {
		name      string
		got, want []string
	}{
		{"the answer", lowered(text(got.Answer)), lowered(text(want.Answer))},
		{"the authority", lowered(text(got.Ns)), lowered(text(want.Authority))},
		{"the additional section", lowered(text(extra)), lowered(text(want.Additional))},
	}
	cut := false
	for _, s := range sections {
		switch {
		case slices.Equal(s.got, s.want) && !cut:
		case got.Truncated && len(s.got) <= len(s.want) && slices.Equal(s.got, s.want[:len(s.got)]):
			cut = true
		case s.name == "the additional section" && !want.Referral && fewer(s.got, s.want):
		default:
			return s.name
		}
	}
	if got.Truncated {
		seen["truncated"]++
		if !cut {
			return "it is truncated, and yet whole"
		}
	}
	return ""
}

// fewer says whether some are left out, and the order is kept.
func fewer(some, all []string) bool {
	for _, s := range all {
		if len(some) > 0 && some[0] == s {
			some = some[1:]
		}
	}
	return len(some) == 0
}

func options(m *dns.Msg) []dns.EDNS0 {
	if o := m.IsEdns0(); o != nil {
		return o.Option
	}
	return nil
}

// lowered is in small letters: names come back in the letter case of the question, in the data too, where pointers lead there.
func lowered(lines []string) []string {
	for i, l := range lines {
		lines[i] = strings.ToLower(l)
	}
	return lines
}

// chance draws worlds, views and queries.
type chance struct{ *rand.Rand }

func of[T any](c *chance, from ...T) T { return from[c.IntN(len(from))] }

func (c *chance) one(in int) bool { return c.IntN(in) == 0 }

// world is three zones, one within another, of some 30 names each, and names worth asking for.
func (c *chance) world(t *testing.T) (*spec.Spec, []string) {
	s := worldSpec(t, "")
	s.CidrCollections = map[string]*spec.CidrCollection{"offices": {Name: "offices", Locations: []spec.CidrLocation{
		{LocationName: "korea", CidrList: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("2001:db8:1::/48")}},
		{LocationName: "seoul", CidrList: []netip.Prefix{netip.MustParsePrefix("10.1.2.0/24")}},
	}}}
	names := []string{".", "com.", "elsewhere.org."}
	for _, zone := range []string{"example.com", "in.example.com", "example.net"} {
		z := &spec.HostedZone{Name: zone}
		if c.one(3) {
			z.NameServers = []string{"ns1." + zone + ".", "ns.example.org."}
		}
		z.Records = spec.RecordsOf(c.records()...)
		s.HostedZones[zone] = z
		names = append(names, zone+".", "none."+zone+".", "a.none."+zone+".", "x.w."+zone+".", "y.x.w."+zone+".", "ns-nrt1."+zone+".", "ns-icn1."+zone+".")
		for _, r := range z.Records.All() {
			name := z.Owner(r.Name)
			names = append(names, name, "below."+name)
			if wild, ok := strings.CutPrefix(name, "*."); ok {
				names = append(names, "any."+wild, "any.any."+wild, wild)
			}
		}
	}
	return s, names
}

// owners are names of a zone. What an alias or a CNAME leads to stands before it, or, of CNAMEs, behind it, too.
var owners = []string{"@", "a", "b", "c", "d.e", "*.w", "x.w", "f", "g", "h.i.j", "*.k", "*", "l", "m", "n", "o", "p", "q", "r", "s"}

var recordTypes = []string{"A", "AAAA", "TXT", "MX"}

func (c *chance) records() (all []spec.Record) {
	type stands struct{ name, typ string }
	var before []stands // what aliases may lead to
	target := func() string {
		name := strings.TrimPrefix(of(c, owners[1:]...), "*.")
		if name == "*" {
			name = "any"
		}
		zone := of(c, "example.com.", "example.com.", "example.com.", "in.example.com.", "example.net.", "elsewhere.org.")
		return name + "." + zone
	}
	for _, name := range owners {
		if c.one(5) {
			continue
		}
		wild := strings.HasPrefix(name, "*")
		switch kind := c.IntN(10); {
		case kind == 0 && name != "@":
			all = append(all, c.sets(name, "CNAME", func(int) []string { return []string{target()} })...)
		case kind == 1 && name != "@" && !wild:
			all = append(all, c.plain(name, "NS", "ns."+name+".example.com.", "ns1."+target(), "ns.example.org."))
			all = append(all, c.plain("ns."+name, "A", c.value("A", 1), c.value("A", 2)))
		case kind == 2 && name != "@" && !wild:
			all = append(all, c.plain(name, "DNAME", target()))
			if c.one(2) {
				all = append(all, c.plain(name, "TXT", c.value("TXT", 1)))
			}
		default:
			for _, typ := range recordTypes {
				if c.one(3) {
					continue
				}
				sets := c.sets(name, typ, func(i int) (values []string) {
					for j := range 1 + c.IntN(of(c, 1, 3, 20)) {
						values = append(values, c.value(typ, 100*i+j))
					}
					return values
				})
				for i := range sets {
					if !c.one(4) {
						continue
					}
					alias := new(spec.Alias)
					alias.EvaluateTargetHealth = c.one(2)
					var same []stands
					for _, b := range before {
						if b.typ == typ {
							same = append(same, b)
						}
					}
					switch k := c.IntN(6); {
					case k >= 3 && len(same) > 0:
						alias.Record = of(c, same...).name
					case typ != "A" && typ != "AAAA":
						continue
					case k == 0:
						alias.Distribution, alias.EvaluateTargetHealth = "site", false
					case k == 1:
						alias.LoadBalancer = of(c, "web-icn", "web-iad")
					default:
						alias.Accelerator = of(c, "echo", "game")
					}
					sets[i].Alias, sets[i].Values, sets[i].TTL = alias, nil, nil
				}
				all = append(all, sets...)
				before = append(before, stands{name, typ})
			}
		}
	}
	return all
}

func (c *chance) value(typ string, i int) string {
	switch typ {
	case "A":
		return fmt.Sprintf("192.0.%d.%d", 2+i/200, 1+i%200)
	case "AAAA":
		return fmt.Sprintf("2001:db8::%x", 1+i)
	case "MX":
		return fmt.Sprintf("%d mail%d.example.com.", 10+i, i)
	}
	return fmt.Sprintf(`"%d %s"`, i, strings.Repeat("Text ", c.IntN(20)))
}

func (c *chance) plain(name, typ string, values ...string) spec.Record {
	ttl := spec.Duration(time.Duration(of(c, 0, 20, 60, 3600)) * time.Second)
	return spec.Record{Name: name, Type: typ, TTL: &ttl, Values: values}
}

// sets are record sets of a name and type under one policy.
func (c *chance) sets(name, typ string, values func(i int) []string) (all []spec.Record) {
	p := c.IntN(12)
	if p > 7 {
		all = append(all, c.plain(name, typ, values(0)...))
		if c.one(8) {
			all[0].HealthCheck = of(c, "c1", "c2", "c3")
		}
		return all
	}
	places := []*spec.GeoLocation{{Country: "*"}, {Country: "KR"}, {Continent: "AS"}, {Continent: "EU"}, {Country: "US"}}
	regions := []string{"ap-northeast-1", "ap-northeast-2", "eu-west-1", "us-east-1"}
	blocks := []string{"korea", "seoul", spec.EveryBlock}
	c.Shuffle(len(places), func(i, j int) { places[i], places[j] = places[j], places[i] })
	c.Shuffle(len(regions), func(i, j int) { regions[i], regions[j] = regions[j], regions[i] })
	c.Shuffle(len(blocks), func(i, j int) { blocks[i], blocks[j] = blocks[j], blocks[i] })
	most := map[int]int{1: len(regions), 2: 2, 3: len(places), 5: len(regions), 6: len(blocks), 4: 12}
	n := 1 + c.IntN(4)
	if m, bounded := most[p]; bounded {
		n = 1 + c.IntN(m)
	}
	otherwise := of(c, "", "", spec.AsIfAllWereHealthy, spec.Nothing, spec.LastGood)
	for i := range n {
		r := c.plain(name, typ, values(i)...)
		r.SetIdentifier, r.OnAllUnhealthy = fmt.Sprint("set", i), otherwise
		if typ == "CNAME" {
			r.Values = r.Values[:1]
		}
		if !c.one(3) {
			r.HealthCheck = of(c, "c1", "c2", "c3")
		}
		switch p {
		case 0, 7:
			weight := of(c, 0, 1, 3, 255)
			r.Weight = &weight
		case 1:
			r.Region = regions[i]
		case 2:
			r.Failover = []string{spec.Primary, spec.Secondary}[i]
		case 3:
			r.GeoLocation = places[i]
		case 4:
			r.MultiValueAnswer = true
		case 5:
			r.GeoProximityLocation = &spec.GeoProximityLocation{Region: regions[i], Bias: of(c, -99, -10, 0, 50, 99)}
		case 6:
			r.CidrRoutingConfig = &spec.CidrRoutingConfig{Collection: "offices", LocationName: blocks[i]}
		}
		all = append(all, r)
	}
	return all
}

// view is one in which anything may be dead, drained, leaving, out of reach or unhealthy.
func (c *chance) view() *view.View {
	if c.one(40) {
		return nil
	}
	v := &view.View{Self: of(c, "dub1-a", "icn1-a", "nrt1-a", "nobody"), Unreachable: map[string]bool{}}
	bad := of(c, 2, 4, 20)
	for _, m := range members() {
		if c.one(bad) {
			continue
		}
		m.Leaving = c.one(2 * bad)
		if c.one(bad) {
			m.Drained = "node " + m.Name
		}
		if c.one(2 * bad) {
			m.Roles = slices.Delete(slices.Clone(m.Roles), 0, 1+c.IntN(2))
		}
		if c.one(bad) {
			v.Unreachable[m.Name] = true
		}
		v.Members = append(v.Members, m)
	}
	verdicts := map[health.Key]health.Verdict{}
	keys := []health.Key{health.CheckKey("c1"), health.CheckKey("c2"), health.CheckKey("c3"),
		health.TargetKey("web-icn", netip.MustParseAddrPort("172.16.1.1:80")), health.TargetKey("web-iad", netip.MustParseAddrPort("172.16.3.1:80"))}
	for _, key := range keys {
		if !c.one(10) {
			verdicts[key] = health.Verdict{Healthy: !c.one(bad), Since: time.Unix(c.Int64N(5), 0), Stands: time.Duration(c.IntN(40)) * time.Second}
		}
	}
	v.Health = health.NewTable(verdicts)
	return v
}

func (c *chance) query(names []string) Query {
	q := Query{Name: of(c, names...), Class: dns.ClassINET, Client: netip.MustParseAddr(of(c, "10.1.2.53", "10.4.0.53", "10.9.0.53", "2001:db8:1::53", "2001:db8:9::53"))}
	q.Type = of(c, dns.TypeA, dns.TypeA, dns.TypeA, dns.TypeA, dns.TypeA, dns.TypeA, dns.TypeAAAA, dns.TypeAAAA, dns.TypeAAAA, dns.TypeTXT, dns.TypeMX, dns.TypeCNAME, dns.TypeNS, dns.TypeSOA, dns.TypeDS, dns.TypeDNAME, dns.TypeANY, dns.TypeCAA, dns.TypeAXFR, 65400)
	if c.one(60) {
		q.Class = of[uint16](c, dns.ClassCHAOS, dns.ClassANY)
	}
	if c.one(3) {
		letters := []byte(q.Name)
		for i, b := range letters {
			if 'a' <= b && b <= 'z' && c.one(2) {
				letters[i] = b - 'a' + 'A' // 0x20
			}
		}
		q.Name = string(letters)
	}
	if !c.one(3) {
		addr := netip.AddrFrom4([4]byte{10, byte(of(c, 1, 1, 2, 3, 4, 5, 9)), byte(c.IntN(4)), byte(c.IntN(256))})
		bits := of(c, 0, 8, 15, 20, 24, 32, 32)
		if c.one(4) {
			addr = netip.MustParseAddr(of(c, "2001:db8:1::1", "2001:db8:9::1", "2001:db8:1:2::"))
			bits = of(c, 0, 32, 48, 56, 128, 128)
		}
		q.ECS, _ = addr.Prefix(bits)
	}
	return q
}

// message is the query as a resolver sends it, with or without EDNS.
func (c *chance) message(t *testing.T, q *Query) []byte {
	m := new(dns.Msg).SetQuestion(q.Name, q.Type)
	m.Question[0].Qclass = q.Class
	if q.ECS.IsValid() || c.one(2) {
		m.SetEdns0(uint16(of(c, 512, 1232, 4096)), c.one(2))
	}
	if q.ECS.IsValid() {
		o := &dns.EDNS0_SUBNET{Code: dns.EDNS0SUBNET, Family: 1, SourceNetmask: uint8(q.ECS.Bits()), Address: q.ECS.Addr().AsSlice()}
		if q.ECS.Addr().Is6() {
			o.Family = 2
		}
		m.IsEdns0().Option = append(m.IsEdns0().Option, o)
	}
	wire, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return wire
}
