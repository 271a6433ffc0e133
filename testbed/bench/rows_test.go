//go:build linux

package bench

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/testbed/gate"
	"github.com/perigee-net/perigee/testbed/procs"
)

func TestRowsAreWhole(t *testing.T) {
	names := map[string]bool{}
	for _, r := range Rows() {
		if names[r.Name] || !regexp.MustCompile(`^[a-z0-9-]+$`).MatchString(r.Name) {
			t.Errorf("the name %q", r.Name)
		}
		names[r.Name] = true
		if r.Work == "" || r.Unit == "" || r.Check == nil || r.Ours.Start == nil || r.Ours.Name != oursName || (r.Load.Own == nil) == (r.Load.Tool == "own") {
			t.Errorf("row %s: %+v", r.Name, r)
		}
		peers := map[string]bool{oursName: true}
		for _, p := range r.Peers {
			if peers[p.Name] || p.Start == nil || !strings.HasPrefix(p.Name, "go-") && (len(p.Needs) == 0 || len(p.Version) == 0 && p.Module == "") {
				t.Errorf("row %s: peer %+v", r.Name, p)
			}
			peers[p.Name] = true
			for _, n := range p.Needs {
				if (n.Program == "") == (n.File == "") || (n.Package == "") == (n.Make == "") {
					t.Errorf("row %s: peer %s needs %+v", r.Name, p.Name, n)
				}
			}
		}
		for _, p := range r.Parts {
			for _, g := range p.Goals {
				if p.Name == "" || g.Want <= 0 || !peers[g.Peer] || g.Peer == oursName || !r.Less {
					t.Errorf("row %s: part %s: goal %+v", r.Name, p.Name, g)
				}
			}
		}
		for _, g := range r.Goals { // without a peer a goal is a bound, or a share
			if g.Want <= 0 || g.Peer != "" && !peers[g.Peer] || g.Peer == "" && !r.Less && !strings.HasPrefix(r.Unit, "%") || g.Peer == oursName {
				t.Errorf("row %s: goal %+v", r.Name, g)
			}
		}
		if strings.HasPrefix(r.Name, "hit-") != (r.Hits && !r.Less) || r.Pace > 0 && (r.Pace >= 1 || r.Load.Own == nil) || r.Once && r.Load.Own == nil {
			t.Errorf("row %s: %+v", r.Name, r)
		}
	}
}

// What HTTP peers are told stands in files, for whoever would tell them something better. Programs that only write down how they were called take
// the place of the real ones.
func TestHTTPPeersAreToldWhatTheFilesSay(t *testing.T) {
	programs := t.TempDir()
	for _, name := range []string{"nginx", "varnishd", "haproxy", "traffic_server", "caddy"} {
		if err := os.WriteFile(filepath.Join(programs, name), []byte("#!/bin/sh\necho $(basename $0) \"$@\" >called\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	r := &run{Config: Config{Path: []string{programs}, Servers: []int{0}}, starter: newStarter()}
	defer r.starter.close()
	if cores, err := allowedCores(); err != nil {
		t.Fatal(err)
	} else {
		r.Servers = cores[:1]
	}
	files, seen := map[string]string{}, map[string]bool{}
	for _, row := range httpRows() {
		for _, p := range row.Peers {
			if p.Name == loopName {
				continue
			}
			dir := t.TempDir()
			s := Stage{Dir: dir, Row: "/row", Host: "127.0.0.1", Port: 8080, TLS: 8443, Origin: "127.0.0.1:9000", Plain: "127.0.0.1:9001", Cert: "/cert.pem", Key: "/key.pem", Both: "/both.pem", run: r}
			proc, err := p.Start(t.Context(), s)
			if err != nil {
				t.Fatal(err)
			}
			<-proc.gone
			var told strings.Builder
			err = filepath.WalkDir(dir, func(file string, d fs.DirEntry, err error) error {
				if err != nil || d.IsDir() || d.Name() == "log" {
					return err
				}
				text, err := os.ReadFile(file)
				if len(text) > 0 {
					fmt.Fprintf(&told, "==> %s\n%s\n", strings.TrimPrefix(file, dir+"/"), strings.TrimSpace(string(text)))
				}
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			got := strings.ReplaceAll(told.String(), dir, "DIR")
			got = regexp.MustCompile(`(?m)^user root;.*\n`).ReplaceAllString(got, "") // as who is root is told
			file, known := files[p.Name+got]
			if !known { // a row may tell it what one before did
				file = filepath.Join("testdata", "told", p.Name+"-"+row.Name)
				files[p.Name+got] = file
			}
			seen[file] = true
			if os.Getenv("UPDATE") != "" {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				continue
			}
			want, err := os.ReadFile(file)
			if d := cmp.Diff(string(want), got); err != nil || d != "" {
				t.Errorf("UPDATE=1 writes it anew: %s %s: %v %s", row.Name, p.Name, err, d)
			}
		}
	}
	stored, _ := filepath.Glob("testdata/told/*")
	for _, file := range stored {
		if !seen[file] {
			t.Errorf("nobody is told %s", file)
		}
	}
}

func TestPlacesAreSpreadOverAllRegionsAndCountries(t *testing.T) {
	count, seen := map[[2]int]int{}, map[netip.Prefix]bool{}
	for n := range places {
		network, in, country := place(n)
		if !network.IsValid() || network != network.Masked() || network.Addr().IsPrivate() || seen[network] {
			t.Errorf("network %v", network)
		}
		seen[network] = true
		count[[2]int{in, country}]++
		if client := clientIn(n, 15); !network.Contains(client.Addr()) || client != client.Masked() {
			t.Errorf("client %v of network %v", client, network)
		}
	}
	for in := range regions {
		for country := range regions[in].countries {
			if n := count[[2]int{in, country}]; n < places/12 || n > places/12+1 {
				t.Errorf("region %d, country %d has %d networks", in, country, n)
			}
		}
	}
}

// The names of the others' one zone are those of ours' many, and each is asked for once.
func TestAllHaveTheSameNames(t *testing.T) {
	const names = zoneNames + 3
	s := Stage{Row: t.TempDir()}
	if err := writeZones(s, names); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(s.Row, zoneAll))
	if err != nil {
		t.Fatal(err)
	}
	parser, theirs := dns.NewZoneParser(bytes.NewReader(text), "", ""), map[string]string{}
	for rr, ok := parser.Next(); ok; rr, ok = parser.Next() {
		if a, is := rr.(*dns.A); is && strings.HasPrefix(a.Hdr.Name, "h") {
			theirs[a.Hdr.Name] = a.A.String()
		}
	}
	docs, err := spec.Split("ours.yaml", []byte(zonesSpec(names)))
	if err != nil || parser.Err() != nil || len(theirs) != names {
		t.Fatal(err, parser.Err(), len(theirs))
	}
	built, err := spec.Build(1, docs, spec.Options{})
	if err != nil {
		t.Fatal(err)
	}
	own := map[string]string{}
	for _, z := range built.HostedZones {
		for _, r := range z.Records.All() {
			own[r.Name+"."+z.Name+"."] = r.Values[0]
		}
	}
	var q questions
	if err := q.ofNames(names); err != nil {
		t.Fatal(err)
	}
	asked := map[string]string{}
	for n := range q.ends {
		var m dns.Msg
		if err := m.Unpack(q.at(n)); err != nil {
			t.Fatal(err)
		}
		asked[m.Question[0].Name] = netip.AddrFrom4(q.want[n]).String()
	}
	if !maps.Equal(theirs, own) {
		t.Errorf("ours has others: %d, not %d, or not the same", len(own), len(theirs))
	}
	if !maps.Equal(theirs, asked) {
		t.Errorf("others are asked for: %d, not %d, or not the same", len(asked), len(theirs))
	}
}

// needed fails where the laboratory is required, and skips elsewhere.
func needed(t *testing.T, lacks string) {
	t.Helper()
	gate.Wanted(t)
	gate.Lacks(t, lacks)
}

// Each row is run for a second with ours and two of the peers that are installed; PERIGEE_BENCH=all: with all. Nothing is said of how fast they are.
func TestEachRowRuns(t *testing.T) {
	gate.Wanted(t)
	program := filepath.Join(t.TempDir(), "perigee")
	if binary := os.Getenv("PERIGEE_BINARY"); binary != "" {
		program = binary
	} else if err := procs.Build(t.Context(), program); err != nil {
		t.Fatal(err)
	}
	rows := Rows()
	if os.Getenv("PERIGEE_BENCH") != "all" { // those of the ocean are one with other numbers, and take up to a minute each
		rows = slices.DeleteFunc(rows, func(r Row) bool { return r.Parts != nil && r.Name != "ocean-80-clean" && r.Name != "ocean-80-bad" })
	}
	for _, row := range rows {
		t.Run(row.Name, func(t *testing.T) {
			var r run
			r.Path = []string{"../../bin/peers"}
			if row.Load.Own == nil && r.find(Need{Program: row.Load.Tool}) == "" {
				needed(t, row.Load.Tool+" is not installed: apt-get install "+toolPackages()[row.Load.Tool])
			}
			if row.Lacks != nil && row.Lacks() != "" {
				needed(t, row.Lacks())
			}
			rows := []Row{row}
			if os.Getenv("PERIGEE_BENCH") != "all" {
				rows[0].Peers = nil
				for _, p := range row.Peers {
					if row.Parts != nil || p.Module == "" && len(p.Needs) > 0 && p.Needs[0].Package != "" && r.find(p.Needs[0]) != "" && len(rows[0].Peers) < 1 {
						rows[0].Peers = append(rows[0].Peers, p)
					}
				}
			}
			got, err := ran(t, Config{Program: program, Path: r.Path, Rows: rows, Rounds: 1, Duration: time.Second, Warm: -1, Objects: 2000, Idle: 200})
			if err != nil {
				t.Fatal(err)
			}
			if skipped := got.Rows[0].Skipped; skipped != "" && !strings.HasPrefix(skipped, errLacks.Error()) || skipped == "" && len(got.Rows[0].Peers) == 0 {
				t.Errorf("nobody is measured: %q", skipped)
			}
			for _, p := range got.Rows[0].Peers {
				// Some are slow, and some leave a client waiting now and then: BIND over HTTPS, for one.
				excused := row.Pace > 0 && strings.Contains(p.firstVoid(), "does not keep up") || !p.Ours && strings.Contains(p.firstVoid(), "after its time")
				if p.Void > 0 && excused {
					t.Logf("%s: %s", p.Name, p.firstVoid())
				}
				fault := p.Fault
				if !p.Ours && strings.HasPrefix(fault, "after the load") { // beside other tests some take longer than they wait themselves
					t.Logf("%s: %s", p.Name, fault)
					fault = ""
				}
				if fault != "" || len(p.Samples) != 1 || p.Void > 0 && !excused || p.Version == "" && !p.Ours && !strings.HasPrefix(p.Name, "go-") {
					t.Errorf("%s %s: %s %s", p.Name, p.Version, p.Fault, p.firstVoid())
				}
			}
		})
	}
}

func TestAWrongAddressIsFound(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a server")
	}
	var r run
	if r.find(Need{Program: "nsd"}) == "" {
		needed(t, "nsd is not installed: apt-get install nsd")
	}
	wrong := nsd(zoneAll, "")
	start := wrong.Start
	wrong.Start = func(ctx context.Context, s Stage) (*Process, error) {
		file := filepath.Join(s.Row, zoneAll)
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		if err := os.WriteFile(file, []byte(strings.Replace(string(text), "\nh0.z0 A "+addressOf(0).String()+"\n", "\nh0.z0 A 192.0.2.66\n", 1)), 0o644); err != nil {
			return nil, err
		}
		return start(ctx, s)
	}
	row := Row{Name: "row", Load: Load{Tool: "own", Own: func(context.Context, Stage, time.Duration) (Measured, error) {
		return Measured{Count: 1, Value: 1}, nil
	}},
		Prepare: func(s Stage) error { return writeZones(s, zoneNames) }, Ours: wrong, Check: func(ctx context.Context, s Stage) error {
			err := checkNames(few, "udp")(ctx, s)
			if err != nil && strings.Contains(err.Error(), "192.0.2.66") {
				t.Log("found:", err)
				return nil
			}
			if err == nil {
				t.Error("a wrong address is not found")
			}
			return err
		}}
	if _, err := ran(t, Config{Rows: []Row{row}}); err != nil {
		t.Error(err)
	}
}
