//go:build linux

package bench

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/quic-go/quic-go/http3"
	"go.uber.org/goleak"
)

// TestMain is also the servers of these tests: `bench.test serve ADDRESS HOW ORIGIN` answers /1024, and `version` says one.
func TestMain(m *testing.M) {
	switch {
	case len(os.Args) == 5 && os.Args[1] == "bench" && os.Args[2] == "loop":
		fmt.Println(Loop(context.Background(), os.Args[3], 1024))
		os.Exit(1)
	case len(os.Args) == 2 && os.Args[1] == "version":
		fmt.Println("perigee 1.2.3")
		os.Exit(0)
	case len(os.Args) == 5 && os.Args[1] == "serve":
		serve(os.Args[2], os.Args[3], os.Args[4])
	case len(os.Args) == 3 && os.Args[1] == "hold":
		hold(os.Args[2])
	}
	goleak.VerifyTestMain(m)
}

// serve is a server that does what how says, and does not end when it is asked to.
func serve(address, how, origin string) {
	if how == "dies at once" {
		fmt.Println("no such file")
		os.Exit(7)
	}
	asked := 0
	err := http.ListenAndServe(address, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked++
		switch {
		case how == "wrong":
			io.WriteString(w, "another body")
			return
		case how == "dies under load" && asked > 5:
			os.Exit(8)
		case how == "asks the origin" && asked > 2:
			res, err := http.Get("http://" + origin + "/1024")
			if err == nil {
				res.Body.Close()
			}
		case how == "wrong in the end" && asked > 5:
			w.WriteHeader(http.StatusTeapot)
		}
		w.Write(body(1024))
	}))
	fmt.Println(err)
	os.Exit(1)
}

// hold starts processes that would outlive their parent, says so, and waits.
func hold(mark string) {
	s := newStarter()
	if _, err := s.start([]int{0}, os.TempDir(), quiet(exec.Command("sh", "-c", "(sleep "+mark+"1 &) ; setsid sleep "+mark+"2 & exec sleep "+mark+"3"))); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("holds", s.apart)
	select {}
}

func quiet(c *exec.Cmd) *exec.Cmd {
	c.Stdout, c.Stderr = io.Discard, io.Discard
	return c
}

// self is a peer that is this test.
func self(name, how string) Peer {
	return Peer{Name: name, Start: func(_ context.Context, s Stage) (*Process, error) {
		return s.Start(nil, s.Program, "serve", s.at(s.Port), how, s.Origin)
	}}
}

// asks is a load of ten requests a sample.
func asks() Load {
	return Load{Tool: "own", Own: func(ctx context.Context, s Stage, d time.Duration) (m Measured, err error) {
		for range 10 {
			if _, err := get(ctx, getting{address: s.at(s.Port), url: "http://" + Name + "/1024", size: 1024}); err != nil {
				m.Failed = err.Error()
			}
			m.Count++
		}
		m.Value = float64(m.Count)
		return m, nil
	}}
}

// ran runs rows of this test's servers, and returns the report.
func ran(t *testing.T, c Config) (*Report, error) {
	t.Helper()
	if c.Program == "" {
		var err error
		if c.Program, err = os.Executable(); err != nil {
			t.Fatal(err)
		}
	}
	if c.Rounds == 0 {
		c.Rounds, c.Duration, c.Warm = 2, time.Second, -1
	}
	var err error
	if c.Dir, err = os.MkdirTemp("", "pgt-bench"); err != nil { // t.TempDir is too long for a unix socket
		t.Fatal(err)
	}
	defer os.RemoveAll(c.Dir)
	c.JSON = filepath.Join(t.TempDir(), "bench.json")
	c.HTML = filepath.Join(t.TempDir(), "bench.html")
	c.Say = func(line string) { t.Log(line) }
	c.Out = func(table string) { t.Log("\n" + table) }
	err = Run(t.Context(), c)
	if left, _ := os.ReadDir(c.Dir); len(left) > 0 {
		t.Errorf("the run left %v", left)
	}
	below := descendants(os.Getpid())
	for pid := range below {
		if p, ok := stat(pid); ok && p.parent == os.Getpid() {
			t.Errorf("process %d is left", pid)
		}
	}
	data, readErr := os.ReadFile(c.JSON)
	if readErr != nil {
		return nil, err
	}
	var r Report
	if err := json.Unmarshal(data, &r); err != nil {
		t.Fatal(err)
	}
	return &r, err
}

func TestOnlyRightAnswersCount(t *testing.T) {
	short := Peer{Name: "short", Needs: []Need{{Program: "no-such-program", Package: "no-such-package"}}}
	r, err := ran(t, Config{Rows: []Row{{Name: "row", Unit: "requests/s", Load: asks(), Check: checkHTTP(1024, false, false, true), Hits: true, Ours: self("perigee", "right"),
		Peers: []Peer{self("other", "right"), self("dead", "dies at once"), self("dying", "dies under load"), self("asking", "asks the origin"), self("turning", "wrong in the end"), short}}}})
	if err != nil {
		t.Fatal(err)
	}
	if r.Ours != "1.2.3" {
		t.Errorf("ours is %q", r.Ours)
	}
	got := map[string]PeerResult{}
	for _, p := range r.Rows[0].Peers {
		got[p.Name] = p
	}
	if p := got["other"]; p.Fault != "" || p.Void > 0 || p.Ratio.Median != 1 || p.Value.N != 2 {
		t.Errorf("who is right: %+v", p)
	}
	if p := got["dead"]; !strings.Contains(p.Fault, "exit status 7") || !strings.Contains(p.Fault, "no such file") || len(p.Samples) > 0 {
		t.Errorf("who dies at once: %+v", p)
	}
	if p := got["dying"]; !strings.Contains(p.Fault, "exit status 8") || p.Value.N > 0 || p.Void != 1 {
		t.Errorf("who dies under load: %+v", p)
	}
	if p := got["asking"]; p.Void != 2 || !strings.Contains(p.Samples[0].Void, "the origin was asked 10 times") || p.Value.N > 0 {
		t.Errorf("who asks the origin: %+v", p)
	}
	if p := got["turning"]; p.Void != 2 || !strings.Contains(p.Fault, "418") {
		t.Errorf("who is wrong in the end: %+v", p)
	}
	if _, measured := got["short"]; measured || !slices.Equal(r.Rows[0].Absent, []string{"short"}) || !slices.Equal(r.Install, []string{"apt-get install -y --no-install-recommends no-such-package"}) {
		t.Errorf("who is not installed: %v %v", r.Rows[0].Absent, r.Install)
	}
}

func TestOursBeingWrongIsTheErrorOfARun(t *testing.T) {
	_, err := ran(t, Config{Rows: []Row{{Name: "row", Load: asks(), Check: checkHTTP(1024, false, false, true), Ours: self("perigee", "dies at once")}}})
	if err == nil || !strings.Contains(err.Error(), "row row: perigee: it has ended: exit status 7") {
		t.Errorf("got %v", err)
	}
}

func TestAllAreAskedAtOursPace(t *testing.T) {
	load := asks()
	own := load.Own
	var paces []float64
	load.Own = func(ctx context.Context, s Stage, d time.Duration) (Measured, error) {
		paces = append(paces, s.Pace)
		return own(ctx, s, d)
	}
	r, err := ran(t, Config{Rounds: 1, Duration: 2 * time.Second, Warm: -1, Rows: []Row{{Name: "row", Load: load, Pace: 0.6, Less: true, Check: checkHTTP(1024, false, false, true), Ours: self("perigee", "right"), Peers: []Peer{self("other", "right")}}}})
	if err != nil || !slices.Equal(paces, []float64{0, 3, 3}) || r.Rows[0].Pace != 3 { // 10 in 2 s at most
		t.Errorf("got %v, %v, want 60 %% of 5 each second", paces, err)
	}
}

func TestARowOfOneSampleHasNoLoadBeforeIt(t *testing.T) {
	load := asks()
	own := load.Own
	ready, asked := 0, 0
	load.Own = func(ctx context.Context, s Stage, d time.Duration) (Measured, error) {
		asked++
		if memory, err := s.proc.Memory(); err != nil || memory < 1<<20 {
			t.Errorf("the server has %d bytes, %v", memory, err)
		}
		return own(ctx, s, d)
	}
	r, err := ran(t, Config{Rounds: 3, Duration: time.Second, Warm: time.Second, Rows: []Row{{Name: "row", Load: load, Once: true, Check: checkHTTP(1024, false, false, true), Ours: self("perigee", "right"),
		Ready: func(context.Context, Stage) error { ready++; return nil }}}})
	if err != nil || asked != 1 || ready != 1 || r.Rows[0].Peers[0].Value.N != 1 {
		t.Errorf("asked %d times, made ready %d times, %v", asked, ready, err)
	}
}

func TestWhatOursCannotDoYetIsSaidAndNoError(t *testing.T) {
	lacking := self("perigee", "right")
	lacking.Start = func(context.Context, Stage) (*Process, error) { return nil, fmt.Errorf("%w: it cannot fly", errLacks) }
	never := self("other", "right")
	never.Start = func(context.Context, Stage) (*Process, error) {
		t.Error("a peer is started for nothing")
		return nil, errLacks
	}
	r, err := ran(t, Config{Rows: []Row{{Name: "row", Load: asks(), Check: checkHTTP(1024, false, false, true), Ours: lacking, Peers: []Peer{never}, Goals: []Goal{{"other", 1}}}}})
	if err != nil || r.Rows[0].Skipped != "not in this program: it cannot fly" || r.Goals != "goals: 0 met, 0 short, 1 not measured" {
		t.Errorf("got %+v, %v", r, err)
	}
}

func TestASampleWithTooFewBytesIsVoid(t *testing.T) {
	load := asks()
	bytes := int64(10 * 1000)
	load.Own = func(context.Context, Stage, time.Duration) (Measured, error) {
		m := Measured{Count: 10, Value: 10, Bytes: bytes}
		bytes = 10 * 1024
		return m, nil
	}
	r, err := ran(t, Config{Rows: []Row{{Name: "row", Load: load, Size: 1024, Check: checkHTTP(1024, false, false, true), Ours: self("perigee", "right")}}})
	if p := r.Rows[0].Peers[0]; err != nil || p.Void != 1 || p.Value.N != 1 || p.Samples[0].Void != "10 answers of 1024 bytes had 10000 bytes in all" {
		t.Errorf("got %+v, %v", p, err)
	}
}

// The memory that a sample has of a server is that of the process and all that it made, however the kernel counts what they share.
func TestMemoryIsThatOfTheWholeTree(t *testing.T) {
	const text = "55e0-7ffd ---p 00000000 00:00 0 [rollup]\nRss:   1024 kB\nPss:    960 kB\nPss_Dirty: 4 kB\n"
	if got, err := pss(text); err != nil || got != 960<<10 {
		t.Errorf("got %d, %v", got, err)
	}
	for _, bad := range []string{"", "Pss: many kB\n", "Pss: 7 MB\n"} {
		if got, err := pss(bad); err == nil {
			t.Errorf("%q: got %d", bad, got)
		}
	}
}

// A cache of one object: what fills it is not there any more.
func TestAFilledCacheMustHaveItAll(t *testing.T) {
	row := Row{Name: "row", Less: true, Once: true, Load: Load{Tool: "own", Own: filled}, Check: checkHTTP(1024, false, false, false), Takes: time.Minute,
		Ours: self("perigee", "right"), Peers: []Peer{self("forgetful", "asks the origin")}}
	r, err := ran(t, Config{Rounds: 1, Duration: time.Second, Warm: -1, Objects: 2000, Rows: []Row{row}})
	if err != nil {
		t.Fatal(err)
	}
	if p := r.Rows[0].Peers[0]; p.Void > 0 || p.Value.N != 1 || p.Samples[0].Count != 2000 {
		t.Errorf("who has all: %+v", p)
	}
	if p := r.Rows[0].Peers[1]; p.Void != 1 || !strings.Contains(p.Samples[0].Void, "of 1000 objects that it was filled with 1000 are gone") {
		t.Errorf("who asks again: %+v", p)
	}
}

func TestIdleConnectionsAreKeptWhileTheyAreCounted(t *testing.T) {
	row := Row{Name: "row", Less: true, Once: true, Load: Load{Tool: "own", Own: kept}, Check: checkHTTP(1024, false, false, true), Ours: self("perigee", "right")}
	r, err := ran(t, Config{Rounds: 1, Duration: time.Second, Warm: -1, Idle: 500, Rows: []Row{row}})
	if p := r.Rows[0].Peers[0]; err != nil || p.Void > 0 || p.Samples[0].Count != 500 || p.Value.Median < 1000 { // a goroutine and its buffers
		t.Errorf("got %+v, %v", p, err)
	}
}

func TestAnAnswerOverHTTP3IsCounted(t *testing.T) {
	s := Stage{Host: "127.0.0.1", Cert: filepath.Join(t.TempDir(), "cert"), Key: filepath.Join(t.TempDir(), "key"), Both: filepath.Join(t.TempDir(), "both")}
	if err := certify(s); err != nil {
		t.Fatal(err)
	}
	pair, err := tls.LoadX509KeyPair(s.Cert, s.Key)
	if err != nil {
		t.Fatal(err)
	}
	var asked atomic.Int64
	var wrong atomic.Bool
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http3.Server{TLSConfig: http3.ConfigureTLSConfig(&tls.Config{Certificates: []tls.Certificate{pair}}), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		if wrong.Load() {
			w.WriteHeader(http.StatusBadGateway)
		}
		w.Write(body(1024))
	})}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(conn) }()
	s.TLS = conn.LocalAddr().(*net.UDPAddr).Port
	if err := speaksH3(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	load := overH3(1024, 2, 3)
	m, err := load(t.Context(), s, time.Second)
	if err != nil || m.Failed != "" || m.Count != asked.Load()-1-2 || m.Bytes != 1024*m.Count || m.P99 < m.P50 || m.P50 <= 0 { // one asked before, and one for each handshake
		t.Errorf("got %+v, %v; %d were asked", m, err, asked.Load())
	}
	wrong.Store(true)
	if m, err := load(t.Context(), s, time.Second); err != nil || !strings.Contains(m.Failed, "502") {
		t.Errorf("who is wrong: got %+v, %v", m, err)
	}
	server.Close()
	conn.Close()
	<-ended
	if err := speaksH3(t.Context(), s); err == nil {
		t.Error("nobody is there, and answers")
	}
}

func TestAWrongAnswerIsFound(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/7":
			w.Write(body(7))
		case "/8":
			w.Write([]byte("12345678"))
		default:
			http.Error(w, "no", http.StatusServiceUnavailable)
		}
	})}
	go server.Serve(l)
	defer server.Close()
	for path, want := range map[string]string{"7": "", "8": "that is not the one of 8", "9": "503"} {
		size, _ := strconv.Atoi(path)
		_, err := get(t.Context(), getting{address: l.Addr().String(), url: "http://" + Name + "/" + path, size: size})
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("/%s: got %v, want %q", path, err, want)
		}
	}
	if _, err := get(t.Context(), getting{address: l.Addr().String(), url: "http://" + Name + "/7", size: 7, h2: true}); err == nil || !strings.Contains(err.Error(), "HTTP/1.1") {
		t.Errorf("by HTTP/1.1, not 2: %v", err)
	}
}

func TestWhatIsWrongWithAConfigurationIsSaid(t *testing.T) {
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	rows := []Row{{Name: "a"}, {Name: "b", Peers: []Peer{{Name: "nginx"}}}}
	for _, test := range []struct {
		want string
		c    Config
	}{
		{`no row "c": there are a, b`, Config{Only: []string{"c"}}},
		{`choose rows by "["`, Config{Only: []string{"["}}},
		{`no row knows a peer "ngnix"`, Config{Peers: []string{"ngnix"}}},
		{"the program to measure", Config{Program: "/no/such/program"}},
		{"101 rounds", Config{Rounds: 101}},
		{"7 objects", Config{Objects: 7}},
		{"30000 idle connections", Config{Idle: 30000}},
		{"want whole seconds", Config{Duration: 1500 * time.Millisecond}},
		{"core 4000 is not among", Config{Servers: []int{4000}}},
	} {
		test.c.Rows = rows
		if test.c.Program == "" {
			test.c.Program = program
		}
		if err := Run(t.Context(), test.c); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("got %v, want %q", err, test.want)
		}
	}
}

func TestACancelledRunLeavesNothing(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	load := asks()
	own := load.Own
	load.Own = func(ctx context.Context, s Stage, d time.Duration) (Measured, error) {
		cancel()
		return own(ctx, s, d)
	}
	err = Run(ctx, Config{Program: program, Dir: dir, Duration: time.Second, Warm: -1, Rows: []Row{{Name: "row", Load: load, Check: checkHTTP(1024, false, false, true), Ours: self("perigee", "right")}}})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("left %v", left)
	}
}

// sleeping are the processes whose command line has the mark.
func sleeping(mark string) (pids []int) {
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if line, _ := os.ReadFile("/proc/" + e.Name() + "/cmdline"); strings.HasPrefix(string(line), "sleep\x00"+mark) {
			pids = append(pids, pid)
		}
	}
	return pids
}

func TestNoServerOutlivesARunThatIsKilled(t *testing.T) {
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	mark := strconv.Itoa(1_000_000 + os.Getpid())
	cmd := exec.Command(program, "hold", mark)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, _ := bufio.NewReader(out).ReadString('\n')
	wait := func(until func() bool) bool {
		for range 500 {
			if until() {
				return true
			}
			time.Sleep(10 * time.Millisecond)
		}
		return false
	}
	if !wait(func() bool { return len(sleeping(mark)) == 3 }) {
		t.Errorf("%d processes, want 3 (%q)", len(sleeping(mark)), line)
	}
	cmd.Process.Kill()
	cmd.Wait()
	defer func() {
		for _, pid := range sleeping(mark) {
			syscall.Kill(pid, syscall.SIGKILL)
		}
	}()
	if !strings.Contains(line, "true") {
		t.Skip("no PID namespaces here (they take root): what a server made outlives a run that is killed")
	}
	if !wait(func() bool { return len(sleeping(mark)) == 0 }) {
		t.Errorf("processes %v are left", sleeping(mark))
	}
}

func TestAFolderThatAKilledRunLeftIsRemovedByTheNext(t *testing.T) {
	dir := t.TempDir()
	// No process has a number above pid_max, which is 2^22 at most.
	for _, name := range []string{"perigee-bench-99999999-1", fmt.Sprintf("perigee-bench-%d-1", os.Getpid()), "perigee-bench-of-mine", "other"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	made, err := makeFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	left, _ := filepath.Glob(filepath.Join(dir, "*"))
	if len(left) != 4 || !slices.Contains(left, made) || slices.Contains(left, filepath.Join(dir, "perigee-bench-99999999-1")) {
		t.Errorf("left %v", left)
	}
}

func TestARowWithoutItsToolSaysHowToGetIt(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	rows := slices.DeleteFunc(Rows(), func(r Row) bool { return r.Load.Own != nil })
	r, err := ran(t, Config{Rows: rows})
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range r.Rows {
		if !strings.HasSuffix(row.Skipped, "is not installed, which makes the load") || len(row.Peers) > 0 {
			t.Errorf("row %s: %q", row.Name, row.Skipped)
		}
	}
	if want := []string{"apt-get install -y --no-install-recommends dnsperf nghttp2-client wrk"}; !slices.Equal(r.Install, want) {
		t.Errorf("got %q, want %q", r.Install, want)
	}
}
