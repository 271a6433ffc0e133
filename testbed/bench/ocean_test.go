//go:build linux

package bench

import (
	"context"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestAFlowIsTimedToItsFirstByteAndItsLast(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	s := Stage{Host: "127.0.0.1", Behind: "127.0.0.1", Port: port, TLS: port}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- vend(ctx, l) }()
	defer func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	for _, x := range []crossing{{}, {direct: true}, {direct: true, control: vendCUBIC}} {
		first, last, err := x.ask(ctx, s, 3_000_001, time.Minute)
		if err != nil || first.Over || last.Over || first.Seconds <= 0 || last.Seconds < first.Seconds {
			t.Errorf("%+v: %+v, %+v, %v", x, first, last, err)
		}
	}
}

func TestAFlowThatTakesTooLongIsBrokenOff(t *testing.T) {
	for _, test := range []struct {
		what  string
		serve func(net.Conn)
		wrong string // what the error has; "": it is over
		first bool   // the first byte is over, too
	}{
		{"silent", func(c net.Conn) { c.Read(make([]byte, 100)); c.Read(make([]byte, 1)) }, "", true},
		{"slow", func(c net.Conn) { c.Write(pattern[:10]); c.Read(make([]byte, 100)); c.Read(make([]byte, 1)) }, "", false},
		{"ended early", func(c net.Conn) { c.Read(make([]byte, 100)); c.Write(pattern[:10]) }, "10 of 1000 bytes came", false},
		{"other bytes", func(c net.Conn) { c.Read(make([]byte, 100)); c.Write([]byte("xyz")) }, errStreamed.Error(), false},
	} {
		t.Run(test.what, func(t *testing.T) {
			l, err := net.Listen("tcp4", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			go func() {
				if c, err := l.Accept(); err == nil {
					test.serve(c)
					c.Close()
				}
			}()
			s := Stage{Host: "127.0.0.1", Port: l.Addr().(*net.TCPAddr).Port}
			patience := 500 * time.Millisecond
			if test.wrong != "" {
				patience = time.Minute
			}
			first, last, err := (&crossing{}).ask(t.Context(), s, 1000, patience)
			switch {
			case test.wrong != "" && (err == nil || !strings.Contains(err.Error(), test.wrong)):
				t.Errorf("got %v", err)
			case test.wrong == "" && (err != nil || last != Took{0.5, true} || first.Over != test.first):
				t.Errorf("got %+v, %+v, %v", first, last, err)
			}
		})
	}
}

// Whoever lacks what a row needs is told so, and the others are measured: by parts, in every other round, with the same chance for all in a round.
func TestARowOfPartsHasAGoalForEach(t *testing.T) {
	seeds := map[int][]uint64{}
	took := func(name string, round int) []Took {
		switch {
		case name == "slow":
			return []Took{{0.4, false}, {15, true}}
		case round == 1:
			return []Took{{0.1, false}, {15, true}}
		}
		return []Took{{0.1, false}, {3, false}}
	}
	var round, asked int
	over := 0
	row := Row{Name: "row", Unit: "seconds", Less: true, Every: 2, Check: checkHTTP(1024, false, false, true), Ours: self("perigee", "right"), Peers: []Peer{self("slow", "right")},
		Parts: []Part{{"small", []Goal{{"slow", 0.4}}}, {"large", []Goal{{"slow", 0.1}}}},
		Around: func(_ context.Context, s *Stage) (func(), error) {
			s.Behind = "elsewhere"
			return func() { over++ }, nil
		},
		Load: Load{Tool: "own", Own: func(_ context.Context, s Stage, _ time.Duration) (Measured, error) {
			if s.Behind != "elsewhere" {
				t.Errorf("it stands in %q", s.Behind)
			}
			seeds[round] = append(seeds[round], s.Seed)
			name := "perigee"
			if strings.HasSuffix(s.Dir, "/1") {
				name = "slow"
			}
			m := Measured{Count: 2, Value: 3, Parts: took(name, round)}
			if asked++; asked == 2 {
				round, asked = round+1, 0
			}
			return m, nil
		}}}
	lacking := Row{Name: "lacking", Check: row.Check, Ours: row.Ours, Load: row.Load, Lacks: func() string { return "root is missing" }, Parts: row.Parts}
	r, err := ran(t, Config{Rows: []Row{row, lacking}, Rounds: 4, Duration: time.Second, Warm: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	if got := r.Rows[1]; got.Skipped != "root is missing" || len(got.Peers) > 0 {
		t.Errorf("what is lacking: %+v", got)
	}
	if len(seeds) != 2 || over != 1 {
		t.Errorf("%d rounds, taken away %d times", len(seeds), over)
	}
	for round, of := range seeds {
		if len(of) != 2 || of[0] != of[1] || round == 1 && of[0] == seeds[0][0] {
			t.Errorf("round %d: seeds %v", round, of)
		}
	}
	parts := r.Rows[0].Parts
	if len(parts) != 2 || r.Goals != "goals: 1 met, 1 short, 0 not measured" {
		t.Fatalf("%d parts, %s", len(parts), r.Goals)
	}
	if small := parts[0].Goals[0]; small.Verdict != met || small.Figure.Median != 0.25 || small.Figure.N != 2 {
		t.Errorf("small: %+v", small)
	}
	// Where both were broken off there is no ratio, and where the other was, it is at most that.
	if large := parts[1].Goals[0]; large.Verdict != tooLittle || large.Figure.Median != 0.2 || large.Figure.N != 1 {
		t.Errorf("large: %+v", large)
	}
	if p := parts[1].Peers; p[0].Over != 1 || p[1].Over != 2 || p[0].seconds() != "9.00 (3.00–> 15)" || p[1].seconds() != "> 15" {
		t.Errorf("large: %+v", p)
	}
}

func TestWhatRunsHaveLeftOfOceansIsKnownByItsName(t *testing.T) {
	if os.Geteuid() != 0 || lacksOcean() != "" {
		needed(t, "no ocean: "+lacksOcean())
	}
	shore, err := newShore("near")
	if err != nil {
		t.Fatal(err)
	}
	defer shore.Delete(context.Background())
	if err := clearOceans(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := shore.Links(); err != nil || !slices.Contains([]string{"perigee-bench-" + strconv.Itoa(os.Getpid()) + "-near"}, shore.Name) {
		t.Errorf("that of a run that lives is gone: %s, %v", shore.Name, err)
	}
}
