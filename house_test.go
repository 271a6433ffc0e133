// Package perigee has no code: this test holds the plan of the house, which ARCHITECTURE.md draws.
package perigee

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/perigee-net/perigee/"

// doors says which rooms a room may import, itself and the rooms inside it apart. "a/..." is a and
// all rooms inside it. The first entry that fits a room holds.
var doors = []struct {
	room string
	may  []string
}{
	{"cluster/latest", nil},
	{"cluster/kept", nil},
	{"cluster/trace", nil},
	{"cluster/rendezvous", nil},
	{"cluster/wire", nil},
	{"cluster/proxy", nil},
	{"cluster/socket", nil},
	{"cluster/lines", nil},
	{"cluster/datagram", nil},
	{"cluster/spec", nil},
	{"cluster/health", []string{"cluster/wire"}},
	{"cluster/clients", nil},
	{"cluster/view", []string{"cluster/spec", "cluster/health", "cluster/clients"}},
	{"cluster/event", []string{"cluster/spec", "cluster/health", "cluster/view", "cluster/kept"}},
	{"cluster/distance", nil},
	{"cluster/file", nil},
	{"cluster/identity", []string{"cluster/file"}},
	{"cluster/control", []string{"cluster/identity"}},
	{"cluster/store", []string{"cluster/latest", "cluster/file"}},
	{"cluster/roster", []string{"cluster/identity", "cluster/store"}},
	{"cluster/watch", []string{"cluster/store", "cluster/latest", "cluster/rendezvous"}},
	{"cluster/gossip", []string{"cluster/latest"}},
	{"cluster/report", []string{"cluster/latest", "cluster/rendezvous", "cluster/wire"}},
	{"cluster/lane", nil},
	{"cluster/fec", []string{"cluster/datagram"}},
	{"cluster/backbone", []string{"cluster/latest", "cluster/fec"}},
	{"cluster/probe", []string{"cluster/spec", "cluster/health", "cluster/view", "cluster/kept", "cluster/rendezvous", "cluster/proxy", "cluster/socket"}},
	{"origin/relay", []string{"cluster/socket"}},
	{"origin/relay/loop", []string{"origin/relay"}},
	{"origin/transparent", nil},
	{"origin/wire", []string{"edge/http1", "cluster/socket"}},
	{"origin/...", []string{"origin/...", "cluster/datagram", "cluster/socket", "cluster/spec", "cluster/health", "cluster/view", "cluster/latest", "cluster/kept", "cluster/trace", "cluster/backbone", "cluster/proxy", "edge/http1"}},
	{"dnsgeo/...", []string{"dnsgeo/...", "cluster/datagram", "cluster/file", "cluster/lines", "cluster/spec", "cluster/health", "cluster/view", "cluster/clients", "cluster/latest", "cluster/kept", "cluster/trace", "cluster/rendezvous"}},
	{"edge/http1", nil},
	{"edge/cache/disk", []string{"cluster/file"}},
	{"edge/...", []string{"edge/...", "origin/...", "dnsgeo/...", "cluster/datagram", "cluster/lines", "cluster/spec", "cluster/health", "cluster/view", "cluster/latest", "cluster/kept", "cluster/trace", "cluster/backbone", "cluster/rendezvous", "cluster/wire"}},
	{"node/front", []string{"edge/http1", "cluster/socket"}},
	{"node/metrics", nil},
	{"node/api", []string{"cluster/view", "cluster/event", "cluster/trace", "cluster/identity", "cluster/roster"}},
	{"node/...", []string{"node/...", "edge/...", "origin/...", "dnsgeo/...", "cluster/..."}},
	{"testbed/netns", []string{"testbed/wan"}},
	{"testbed/pump", []string{"testbed/wan", "testbed/netns"}},
	{"testbed/wan", []string{"cluster/spec"}},
	{"testbed/page", nil},
	{"testbed/load", nil},
	{"testbed/faulty", nil},
	{"testbed/uml", nil},
	{"testbed/doorway", []string{"edge/http1"}},
	{"testbed/tmpfs", nil},
	{"testbed/gate", nil},
	{"testbed/eitherway", []string{"origin/relay/..."}},
	{"testbed/bed", []string{"testbed/wan", "testbed/netns", "testbed/pump", "testbed/demo", "testbed/faulty", "node/api", "cluster/spec", "cluster/file"}},
	{"testbed/memnet", []string{"cluster/spec"}},
	{"testbed/demo", nil},
	{"testbed/...", []string{"testbed/...", "node/...", "cluster/...", "dnsgeo/..."}},
	{"cmd/perigee", []string{"node/...", "testbed/...", "cluster/spec", "cluster/view", "cluster/trace", "cluster/identity", "cluster/store", "cluster/file", "dnsgeo/geo", "dnsgeo/zonefile", "dnsgeo/route53", "edge/anycast"}},
}

// behind says which room is the only one to import a library. Tests may import it anywhere; a library that is not
// listed may be imported by nobody else.
var behind = map[string][]string{
	"github.com/hashicorp/raft":            {"cluster/store"},
	"github.com/hashicorp/go-hclog":        {"cluster/store"},
	"go.etcd.io/bbolt":                     {"cluster/store"},
	"github.com/hashicorp/memberlist":      {"cluster/gossip"},
	"github.com/hashicorp/serf":            {"cluster/distance"},
	"github.com/prometheus/client_golang":  {"node/metrics"},
	"github.com/prometheus/client_model":   {"node/metrics"},
	"github.com/prometheus/common":         {"node/metrics"},
	"github.com/quic-go/quic-go":           {"cluster/backbone", "node/front", "dnsgeo/doq", "testbed/bench"}, // bench asks by HTTP/3 as a browser does
	"github.com/klauspost/reedsolomon":     {"cluster/fec"},
	"github.com/goccy/go-yaml":             {"cluster/spec"},
	"github.com/miekg/dns":                 {"dnsgeo/...", "testbed"}, // testbed asks as a resolver does
	"github.com/phuslu/iploc":              {"dnsgeo/geo"},
	"github.com/oschwald/maxminddb-golang": {"dnsgeo/geo"},
	"github.com/gaissmai/bart":             {"dnsgeo/geo", "node"}, // node: who is blocked
	"github.com/maypok86/otter":            {"edge/cache"},
	"github.com/dunglas/httpsfv":           {"edge/cache"},
	"github.com/pires/go-proxyproto":       {"node/front", "cluster/proxy"},
	"github.com/spf13/cobra":               {"cmd/perigee"},
	"github.com/osrg/gobgp":                {"edge/anycast"},
	"github.com/cilium/ebpf":               {"edge/anycast/stray"},
	"github.com/vishvananda/netlink":       {"testbed/netns"},
	"github.com/maxmind/mmdbwriter":        {"testbed/bed", "testbed/bench"},
	"golang.org/x":                         {"..."},
}

var forbidden = []string{"util", "utils", "common", "pkg", "internal", "manager", "config", "helpers", "misc"}

func TestTheHouseStandsAsPlanned(t *testing.T) {
	comments := map[string]bool{}
	for _, file := range sources(t) {
		room := path.Dir(filepath.ToSlash(file))
		test := strings.HasSuffix(file, "_test.go")
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			t.Errorf("%s: %v", file, err)
			continue
		}
		comments[room] = comments[room] || parsed.Doc != nil
		if slices.Contains(forbidden, path.Base(room)) {
			t.Errorf("%s: a room is a place or a thing, not %q", file, path.Base(room))
		}
		if test {
			continue
		}
		for _, d := range parsed.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil && f.Name.Name == "init" {
				t.Errorf("%s: init runs behind everyone's back", file)
			}
		}
		for _, i := range parsed.Imports {
			imported := strings.Trim(i.Path.Value, `"`)
			if inside, ours := strings.CutPrefix(imported, module); ours {
				if !mayImport(t, room, inside) {
					t.Errorf("%s: there is no door from %s to %s", file, room, inside)
				}
				continue
			}
			if first, _, _ := strings.Cut(imported, "/"); !strings.Contains(first, ".") {
				continue // the standard library
			}
			known := false
			for library, rooms := range behind {
				if !fits(library+"/...", imported) {
					continue
				}
				known = true
				if !slices.ContainsFunc(rooms, func(r string) bool { return fits(r, room) }) {
					t.Errorf("%s: %s is behind the door of %s", file, library, rooms)
				}
			}
			if !known {
				t.Errorf("%s: %s has no door", file, imported)
			}
		}
	}
	for room, has := range comments {
		if !has {
			t.Errorf("%s: no package comment", room)
		}
	}
}

func mayImport(t *testing.T, room, imported string) bool {
	if imported == room || strings.HasPrefix(imported, room+"/") {
		return true
	}
	for _, d := range doors {
		if fits(d.room, room) {
			return slices.ContainsFunc(d.may, func(m string) bool { return fits(m, imported) })
		}
	}
	t.Errorf("%s: a room that is not on the plan", room)
	return true
}

// fits says whether a room is the one of the pattern, or inside it where it ends in "/...".
func fits(pattern, room string) bool {
	if pattern == "..." {
		return true
	}
	if outer, all := strings.CutSuffix(pattern, "/..."); all {
		return room == outer || strings.HasPrefix(room, outer+"/")
	}
	return pattern == room
}

// sources are the Go files of this module.
func sources(t *testing.T) []string {
	var files []string
	err := filepath.WalkDir(".", func(file string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && file != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || d.Name() == "tools" || d.Name() == "bin"):
			return filepath.SkipDir
		case strings.HasSuffix(file, ".go"):
			files = append(files, file)
		}
		return nil
	})
	if err != nil || len(files) == 0 {
		t.Fatalf("found %d files: %v", len(files), err)
	}
	return files
}
