package testbed

import (
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/maxmind/mmdbwriter"
	"github.com/maxmind/mmdbwriter/mmdbtype"

	"github.com/perigee-net/perigee/node/api"
)

// elsewhere is a database that has all of IPv4 in Brazil.
func elsewhere(t *testing.T) string {
	t.Helper()
	writer, err := mmdbwriter.New(mmdbwriter.Options{DatabaseType: "Test-Country", IncludeReservedNetworks: true})
	if err != nil {
		t.Fatal(err)
	}
	_, all, err := net.ParseCIDR("0.0.0.0/0")
	if err != nil {
		t.Fatal(err)
	}
	if err := writer.Insert(all, mmdbtype.Map{"country": mmdbtype.Map{"iso_code": mmdbtype.String("BR")}}); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "elsewhere.mmdb")
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := writer.WriteTo(file); err != nil {
		t.Fatal(err)
	}
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

// differing are the nodes, as status groups them by their answers; nil: nobody answers otherwise.
func (w *World) differing(t *testing.T, at string) [][]string {
	t.Helper()
	st, err := w.nodes[at].node.Client().Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(st.AnswersDiffer) == 0 {
		return nil
	}
	return st.AnswersDiffer[0].Nodes
}

// Whatever happens, nodes that see the same answer the same; and one that does not is found.
func TestANodeThatAnswersOtherwiseIsFound(t *testing.T) {
	inWorld(t, func(t *testing.T, w *World) {
		for _, step := range [][]string{nil, {"kill", "targets", "us-east-1"}, {"slow", "iad1", "fra1", "400ms"}, {"crash", "iad1"}, {"start", "iad1"}} {
			if step != nil {
				w.do(t, step[0], step[1:]...)
			}
			time.Sleep(40 * time.Second)
			for name, n := range w.nodes {
				if !n.lives() {
					continue
				}
				if got := w.differing(t, name); got != nil {
					t.Fatalf("after %v %s tells that answers differ: %v", step, name, got)
				}
			}
		}
		for name := range w.nodes {
			compared, differ := w.metric(t.Context(), t, name, "dns_answers_compared_total"), w.metric(t.Context(), t, name, "dns_answers_differ_total")
			if compared < 4 || differ != 0 {
				t.Errorf("%s has compared %d, of which %d differ", name, compared, differ)
			}
		}
		w.do(t, "stop", "fra1")
		w.nodes["fra1"].cfg.GeoDB = elsewhere(t) // told: what one node has, and the others have not
		w.do(t, "start", "fra1")
		time.Sleep(60 * time.Second)
		for name := range w.nodes {
			got := w.differing(t, name)
			if len(got) != 2 || !slices.Equal(got[0], []string{"iad1", "icn1"}) || !slices.Equal(got[1], []string{"fra1"}) {
				t.Errorf("%s tells %v", name, got)
			}
			if n := w.metric(t.Context(), t, name, "dns_answers_differ_total"); n == 0 {
				t.Errorf("%s has counted none", name)
			}
			list, err := w.nodes[name].node.Client().Events(t.Context(), api.EventQuery{Limit: 1000})
			if err != nil {
				t.Fatal(err)
			}
			if !slices.ContainsFunc(list.Events, func(e api.Event) bool { return e.Kind == "answers" && strings.Contains(e.Text, "otherwise than") }) {
				t.Errorf("%s has no event of it", name)
			}
		}
	})
}
