package dnsgeo

import (
	"bufio"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/dnsgeo/zone"
)

// answersOfOthers stands beside the checkout, see the README there.
const answersOfOthers = "../../shared/data/dns-authority/zones-and-answers.jsonl.gz"

// Every zone of the data set is answered as at least one of BIND, NSD, Knot and PowerDNS answered it: in rcode, flags,
// answer, and authority where there is no answer.
func TestAnswersAgreeWithOtherServers(t *testing.T) {
	f, err := os.Open(answersOfOthers)
	if errors.Is(err, fs.ErrNotExist) {
		t.Logf("%s is not there: nothing to compare with", answersOfOthers)
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	unzipped, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(unzipped)
	lines.Buffer(nil, 1<<20)
	agreed, considered := 0, 0
	for lines.Scan() {
		var c struct {
			ID    int
			Zone  string
			Tests []struct {
				Query    struct{ Name, Type string }
				Expected []struct {
					Servers  string `json:"Server/s"`
					Response []string
				} `json:"Expected Response"`
			}
		}
		if err := json.Unmarshal(lines.Bytes(), &c); err != nil {
			t.Fatal(err)
		}
		z := zoneOf(t, c.Zone)
		s := New(Config{})
		s.table.Store(&Table{spec: new(spec.Spec), zones: zone.NewTable(z), atlas: new(atlas)})
		for _, test := range c.Tests {
			considered++
			query := new(dns.Msg).SetQuestion(test.Query.Name, dns.StringToType[test.Query.Type])
			query.RecursionDesired = false
			got := summary(ask(t, s, query))
			var want []string
			for _, group := range test.Expected {
				want = append(want, summaryOf(t, group.Response))
			}
			if slices.Contains(want, got) {
				agreed++
			} else {
				t.Errorf("case %d: %s %s of\n%s\ngot\n%s\nothers\n%s", c.ID, test.Query.Name, test.Query.Type, c.Zone, got, strings.Join(want, "or\n"))
			}
		}
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	t.Logf("agreed in %d of %d cases", agreed, considered)
	if considered != 6337 {
		t.Errorf("considered %d cases, there are 6,337", considered)
	}
}

// zoneOf makes a zone of zone-file text.
func zoneOf(t testing.TB, text string) *zone.Zone {
	t.Helper()
	parser := dns.NewZoneParser(strings.NewReader(text), ".", "")
	var rrs []dns.RR
	origin := ""
	for rr, ok := parser.Next(); ok; rr, ok = parser.Next() {
		if rr.Header().Rrtype == dns.TypeSOA {
			origin = rr.Header().Name
		}
		rrs = append(rrs, rr)
	}
	if err := parser.Err(); err != nil {
		t.Fatal(err)
	}
	z, err := zone.New(origin, rrs)
	if err != nil {
		t.Fatal(err)
	}
	return z
}

// ask sends a query through the handler of datagrams and returns the response.
func ask(t testing.TB, s *Server, query *dns.Msg) *dns.Msg {
	t.Helper()
	m, err := query.Pack()
	if err != nil {
		t.Fatal(err)
	}
	response := new(dns.Msg)
	if err := response.Unpack(s.respond(make([]byte, roomSize), m, netip.MustParseAddr("192.0.2.53"), UDP)); err != nil {
		t.Fatal(err)
	}
	if response.Id != query.Id || !response.Response {
		t.Fatalf("got %v, want a response to %d", response, query.Id)
	}
	return response
}

// summary is what is compared of a response, as text.
func summary(m *dns.Msg) string {
	flags := "QR"
	if m.Authoritative {
		flags += " AA"
	}
	if m.Truncated {
		flags += " TC"
	}
	section := m.Answer
	if len(section) == 0 {
		section = m.Ns
	}
	return summarize(dns.RcodeToString[m.Rcode], flags, len(m.Answer) > 0, section)
}

func summarize(rcode, flags string, answered bool, rrs []dns.RR) string {
	var lines []string
	for _, rr := range rrs {
		lines = append(lines, rr.String())
	}
	slices.Sort(lines)
	return fmt.Sprintf("%s, %s, answered: %v\n%s\n", rcode, flags, answered, strings.Join(lines, "\n"))
}

// summaryOf is that of a recorded response.
func summaryOf(t *testing.T, recorded []string) string {
	var rcode, flags, section string
	sections := map[string][]dns.RR{}
	for _, line := range recorded {
		switch {
		case strings.HasPrefix(line, "rcode "):
			rcode = strings.TrimPrefix(line, "rcode ")
		case strings.HasPrefix(line, "flags "):
			flags = strings.TrimPrefix(line, "flags ")
		case strings.HasPrefix(line, ";"):
			section = line
		case section == ";ANSWER" || section == ";AUTHORITY":
			rr, err := dns.NewRR(line)
			if err != nil {
				t.Fatal(err)
			}
			sections[section] = append(sections[section], rr)
		}
	}
	if answer := sections[";ANSWER"]; len(answer) > 0 {
		return summarize(rcode, flags, true, answer)
	}
	return summarize(rcode, flags, false, sections[";AUTHORITY"])
}
