//go:build linux

package bench

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

// The files are what the tools of Debian 12 printed: wrk 4.1.0, h2load of nghttp2 1.52.0, dnsperf 2.10.0.
func TestWhatToolsPrintIsRead(t *testing.T) {
	for _, test := range []struct {
		tool, file string
		want       Measured
	}{
		{"wrk", "wrk", Measured{Count: 22804, Value: 22785.48, Bytes: 28825354, Mean: 1010 * time.Microsecond, P50: 399 * time.Microsecond, P99: 4970 * time.Microsecond}},
		{"wrk", "wrk-404", Measured{Count: 24530, Value: 24516.83, Bytes: 7560232, Mean: 1100 * time.Microsecond, P50: 256 * time.Microsecond, P99: 6580 * time.Microsecond, Failed: "Non-2xx or 3xx responses: 24530"}},
		{"h2load", "h2load", Measured{Count: 14678, Value: 14678, Bytes: 16879896, Mean: 2090 * time.Microsecond}},
		{"h2load", "h2load-404", Measured{Value: 19029, Bytes: 4205664, Mean: 1630 * time.Microsecond, Failed: "19029 failed; 19030 answered 4xx"}},
		{"h2load", "h2load-refused", Measured{}},
		{"dnsperf", "dnsperf", Measured{Count: 67217, Value: 67176.626847, Mean: 1206 * time.Microsecond}},
		{"dnsperf", "dnsperf-nxdomain", Measured{Count: 66644, Value: 66387.478782, Mean: 1208 * time.Microsecond, Failed: "answered NXDOMAIN 33322 (50.00%)"}},
		{"dnsperf", "dnsperf-lost", Measured{Failed: "7 of 7 queries lost"}},
	} {
		text, err := os.ReadFile(filepath.Join("testdata", test.file+".txt"))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := parse(test.tool, string(text)); err != nil || !reflect.DeepEqual(got, test.want) {
			t.Errorf("%s: got %+v, %v\nwant %+v", test.file, got, err, test.want)
		}
	}
}

func TestWhatIsNotUnderstoodIsAnError(t *testing.T) {
	refused, err := os.ReadFile("testdata/wrk-refused.txt")
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ tool, out, want string }{
		{"wrk", string(refused), "Connection refused"},
		{"wrk", "", "wrk printed no number of requests"},
		{"wrk", "7 requests in 1.00s\nRequests/sec: 7\n", "wrk printed no number of bytes"},
		{"h2load", "finished in 1.00s, 0.00 req/s, 0B/s", "h2load printed no counts"},
		{"dnsperf", "Queries sent: 7", "dnsperf printed no queries completed"},
		{"ab", "", `the output of "ab" is not understood`},
	} {
		if _, err := parse(test.tool, test.out); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s %q: got %v, want %q", test.tool, test.out, err, test.want)
		}
	}
}

func TestAFewLostDatagramsAreNoFault(t *testing.T) {
	text, err := os.ReadFile("testdata/dnsperf.txt")
	if err != nil {
		t.Fatal(err)
	}
	for lost, void := range map[string]bool{"0": false, "67": false, "68": true} {
		m, err := parse("dnsperf", strings.Replace(string(text), "Queries lost:         0", "Queries lost:         "+lost, 1))
		if err != nil || (m.Failed != "") != void {
			t.Errorf("%s lost: got %q, %v", lost, m.Failed, err)
		}
	}
}

func FuzzTools(f *testing.F) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		f.Fatal(files, err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(text))
	}
	f.Fuzz(func(t *testing.T, out string) {
		for _, tool := range []string{"wrk", "h2load", "dnsperf"} {
			if m, err := parse(tool, out); err == nil && (m.Count < 0 || m.Value < 0) {
				t.Errorf("%s: %+v", tool, m)
			}
		}
	})
}

const goBench = `goos: linux
goarch: amd64
pkg: github.com/perigee-net/perigee/edge/cdn
cpu: AMD EPYC
BenchmarkHit-2            	  500000	      1800 ns/op	     320 B/op	       3 allocs/op
BenchmarkHit-2            	  500000	      1400 ns/op	     320 B/op	       3 allocs/op
BenchmarkHitThroughASocket/64KB-2 	   30000	     40000 ns/op	1638.40 MB/s	     900 B/op	      27 allocs/op
PASS
ok  	github.com/perigee-net/perigee/edge/cdn	3.1s
pkg: github.com/perigee-net/perigee/dnsgeo
BenchmarkAnswer/nearest-2 	  600000	      1700 ns/op	         7.000 spread
--- FAIL: BenchmarkOther
BenchmarkBroken-2 	  never	      1700 ns/op
`

func TestGoBenchmarksAreRead(t *testing.T) {
	got := parseMicro(goBench)
	if len(got) != 3 {
		t.Fatalf("got %d: %+v", len(got), got)
	}
	if m := got[0]; m.Package != "github.com/perigee-net/perigee/dnsgeo" || m.Name != "Answer/nearest" || m.Values["spread"].Median != 7 {
		t.Errorf("got %+v", m)
	}
	if m := got[1]; m.Name != "Hit" || m.Values["ns/op"].Median != 1600 || m.Values["ns/op"].N != 2 || m.Values["ns/op"].Min != 1400 || m.Values["allocs/op"].Max != 3 {
		t.Errorf("got %+v", m)
	}
	if m := got[2]; m.Name != "HitThroughASocket/64KB" || strings.Join(m.units(), " ") != "ns/op MB/s B/op allocs/op" {
		t.Errorf("got %+v, %v", m, m.units())
	}
}

func FuzzMicro(f *testing.F) {
	f.Add(goBench)
	f.Fuzz(func(t *testing.T, text string) {
		for _, m := range parseMicro(text) {
			if len(m.Values) == 0 && strings.Count(text, "\n") < 2 && m.Name == "" {
				t.Errorf("%q: %+v", text, m)
			}
		}
	})
}
