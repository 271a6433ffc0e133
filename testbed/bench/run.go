//go:build linux

package bench

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"debug/buildinfo"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// How long things may take before they count as hung.
const (
	startTime = time.Minute // until a server gives the right answer
	toolTime  = 20 * time.Second
	again     = 100 * time.Millisecond // how often something is looked at that is waited for
	calm      = 0.05                   // share of a core that others may take before a run counts as disturbed
	mostBytes = 0.98                   // of the bytes that bodies must have, a tool must have seen so many: it rounds
	full      = 0.90                   // share of its cores that a server must use for its rate to be its own limit
)

// errLacks is that ours can't do a row's work yet: the row is left out, and says so.
var errLacks = errors.New("not in this program")

// run is one run.
type run struct {
	Config
	dir     string
	starter *starter
	origin  *origin
	plain   *Process // nil: the origin is plain
	stage   Stage    // what all have in common
}

// Run measures all rows and reports. The error says what is wrong with the configuration, that the context ended, that a report could not be
// written, or that ours did not give the right answers; what is wrong with a peer stands in the report alone.
func Run(ctx context.Context, c Config) error {
	if err := c.complete(); err != nil {
		return err
	}
	report, err := measure(ctx, c)
	if err != nil {
		return err
	}
	if c.Out != nil {
		c.Out(report.Table())
	}
	if c.JSON != "" {
		if err := writeFile(c.JSON, report.JSON); err != nil {
			return err
		}
	}
	if c.HTML != "" {
		if err := writeFile(c.HTML, report.HTML); err != nil {
			return err
		}
	}
	return report.fault()
}

// complete checks what was told, and fills in the rest.
func (c *Config) complete() error {
	if c.Rows == nil {
		c.Rows = Rows()
	}
	if len(c.Only) > 0 {
		var kept []Row
		for _, pattern := range c.Only {
			found := false
			for _, r := range c.Rows {
				ok, err := path.Match(pattern, r.Name)
				if err != nil {
					return fmt.Errorf("choose rows by %q: %w", pattern, err)
				}
				if found = found || ok; ok && !slices.ContainsFunc(kept, func(k Row) bool { return k.Name == r.Name }) {
					kept = append(kept, r)
				}
			}
			if !found {
				var names []string
				for _, r := range c.Rows {
					names = append(names, r.Name)
				}
				return fmt.Errorf("no row %q: there are %s", pattern, strings.Join(names, ", "))
			}
		}
		c.Rows = kept
	}
	if c.Rounds == 0 {
		c.Rounds = 7
	}
	if c.Duration == 0 {
		c.Duration = 5 * time.Second
	}
	if c.Warm == 0 {
		c.Warm = 2 * time.Second
	}
	if c.Objects == 0 {
		c.Objects = 1_000_000
	}
	if c.Idle == 0 {
		c.Idle = 10_000
	}
	if c.Seed == 0 {
		c.Seed = uint64(time.Now().UnixNano())
	}
	if c.Say == nil {
		c.Say = func(string) {}
	}
	switch {
	case len(c.Rows) > MaxRows:
		return fmt.Errorf("%d rows: at most %d", len(c.Rows), MaxRows)
	case c.Rounds < 1 || c.Rounds > MaxRounds:
		return fmt.Errorf("%d rounds: want 1 to %d", c.Rounds, MaxRounds)
	case c.Duration < time.Second || c.Duration > MaxDuration || c.Duration%time.Second != 0:
		return fmt.Errorf("samples of %v: want whole seconds, 1s to %v", c.Duration, MaxDuration)
	case c.Objects < 1000 || c.Objects > MaxObjects:
		return fmt.Errorf("%d objects: want 1000 to %d", c.Objects, MaxObjects)
	case c.Idle < 1 || c.Idle > maxConnections:
		return fmt.Errorf("%d idle connections: want 1 to %d", c.Idle, maxConnections)
	case c.Warm > 0 && c.Warm < time.Second || c.Warm > MaxDuration || c.Warm > 0 && c.Warm%time.Second != 0:
		return fmt.Errorf("warm up for %v: want whole seconds, 1s to %v", c.Warm, MaxDuration)
	}
	known := map[string]bool{"none": true}
	for _, r := range c.Rows {
		if len(r.Peers) > MaxPeers {
			return fmt.Errorf("row %s has %d peers: at most %d", r.Name, len(r.Peers), MaxPeers)
		}
		for _, p := range r.Peers {
			known[p.Name] = true
		}
	}
	for _, p := range c.Peers {
		if !known[p] {
			return fmt.Errorf("no row knows a peer %q", p)
		}
	}
	var err error
	if c.Program, err = filepath.Abs(c.Program); err == nil {
		_, err = os.Stat(c.Program)
	}
	if err != nil {
		return fmt.Errorf("the program to measure: %w", err)
	}
	if c.Profile != "" {
		if c.Profile, err = filepath.Abs(c.Profile); err != nil {
			return err
		}
	}
	for i := range c.Path {
		if c.Path[i], err = filepath.Abs(c.Path[i]); err != nil {
			return err
		}
	}
	cores, err := allowedCores()
	if err != nil {
		return err
	}
	for _, core := range slices.Concat(c.Servers, c.Loads) {
		if !slices.Contains(cores, core) {
			return fmt.Errorf("core %d is not among those of this process: %v", core, cores)
		}
	}
	if c.Servers == nil {
		c.Servers = cores[:1]
	}
	if c.Loads == nil {
		c.Loads = slices.DeleteFunc(slices.Clone(cores), func(core int) bool { return slices.Contains(c.Servers, core) })
		if len(c.Loads) == 0 {
			c.Loads = c.Servers // one core for all: the report says so
		}
	}
	return nil
}

func measure(ctx context.Context, c Config) (*Report, error) {
	r := &run{Config: c}
	cores, err := allowedCores()
	if err != nil {
		return nil, err
	}
	if err := pinSelf(c.Loads); err != nil {
		return nil, err
	}
	defer pinSelf(cores)
	if err := raiseFiles(); err != nil {
		return nil, err
	}
	if r.dir, err = makeFolder(c.Dir); err != nil {
		return nil, fmt.Errorf("make a folder for the servers: %w", err)
	}
	defer os.RemoveAll(r.dir)
	r.starter = newStarter()
	defer r.starter.close()
	if r.origin, err = openOrigin(); err != nil {
		return nil, err
	}
	defer r.origin.close()
	r.stage = Stage{Host: "127.0.0.1", Behind: "127.0.0.1", Program: c.Program, Objects: c.Objects, Idle: c.Idle, Origin: r.origin.address(), run: r,
		Cert: filepath.Join(r.dir, "cert.pem"), Key: filepath.Join(r.dir, "key.pem"), Both: filepath.Join(r.dir, "both.pem"), places: filepath.Join(r.dir, "places.mmdb")}
	if err := certify(r.stage); err != nil {
		return nil, fmt.Errorf("make a certificate: %w", err)
	}
	if err := writePlaces(r.stage.places); err != nil {
		return nil, fmt.Errorf("make a file of places: %w", err)
	}
	if slices.ContainsFunc(c.Rows, func(row Row) bool { return row.Plain }) {
		if err := r.openPlain(ctx); err != nil {
			return nil, fmt.Errorf("start an origin: %w", err)
		}
	}

	report := &Report{Began: time.Now().UTC(), Seed: c.Seed, Rounds: c.Rounds, Seconds: int(c.Duration.Seconds()), Machine: describe(c.Servers, c.Loads)}
	said, _, err := r.starter.run(ctx, c.Loads, r.dir, []string{c.Program, "version"})
	if err != nil {
		return nil, fmt.Errorf("the program to measure: %w", err)
	}
	report.Ours = strings.TrimPrefix(firstLine(said), "perigee ")
	missing := map[Need]bool{}
	for i, row := range c.Rows {
		c.Say(fmt.Sprintf("row %d of %d, %s: %s", i+1, len(c.Rows), row.Name, row.Work))
		result, err := r.row(ctx, row, uint64(i), missing)
		if err != nil {
			return nil, fmt.Errorf("row %s: %w", row.Name, err)
		}
		report.Rows = append(report.Rows, result)
	}
	report.Install = install(missing)
	if c.Micro != "" {
		text, err := os.ReadFile(c.Micro)
		if err != nil {
			return nil, fmt.Errorf("read the Go benchmarks: %w", err)
		}
		report.Micro = parseMicro(string(text))
	}
	report.Machine.LoadAfter = loadAverage()
	report.Took = time.Since(report.Began).Round(time.Second).String()
	report.judge()
	return report, nil
}

// player is one server of a row while it is measured.
type player struct {
	Peer
	stage  Stage
	proc   *Process
	result *PeerResult
}

// row measures one row. The error is of this machine or of the context, not of a server.
func (r *run) row(ctx context.Context, row Row, number uint64, missing map[Need]bool) (RowResult, error) {
	res := RowResult{Name: row.Name, Work: row.Work, Unit: row.Unit, Command: strings.Join(append([]string{row.Load.Tool}, row.Load.Args...), " "), Hits: row.Hits, Less: row.Less}
	for _, g := range row.Goals {
		res.Goals = append(res.Goals, GoalResult{Goal: g, Verdict: notMeasured})
	}
	tool := ""
	if row.Load.Own == nil {
		need := Need{Program: row.Load.Tool, Package: toolPackages()[row.Load.Tool]}
		if tool = r.find(need); tool == "" {
			missing[need] = true
			res.Skipped = row.Load.Tool + " is not installed, which makes the load"
			return res, nil
		}
	}
	if row.Lacks != nil {
		if res.Skipped = row.Lacks(); res.Skipped != "" {
			r.Say("  " + res.Skipped)
			return res, nil
		}
	}
	stage := r.stage
	stage.row = row.Name
	stage.Row = filepath.Join(r.dir, strconv.FormatUint(number, 10)) // short: the path of a unix socket has a bound
	if err := os.Mkdir(stage.Row, 0o755); err != nil {
		return res, err
	}
	defer os.RemoveAll(stage.Row)
	if row.Around != nil {
		over, err := row.Around(ctx, &stage)
		if err != nil {
			return res, fmt.Errorf("make what servers stand in: %w", err)
		}
		defer over()
	}
	if row.Prepare != nil {
		if err := row.Prepare(stage); err != nil {
			return res, fmt.Errorf("prepare: %w", err)
		}
	}

	var players []*player
	defer func() {
		for _, p := range players {
			if p.proc != nil {
				p.proc.Stop()
			}
		}
	}()
	for i, peer := range slices.Concat([]Peer{row.Ours}, row.Peers) {
		ours := i == 0
		if !ours && r.Peers != nil && !slices.Contains(r.Peers, peer.Name) {
			continue
		}
		lacks := false
		for _, n := range peer.Needs {
			if r.find(n) == "" {
				missing[n], lacks = true, true
			}
		}
		if lacks {
			res.Absent = append(res.Absent, peer.Name)
			continue
		}
		p := &player{Peer: peer, stage: stage, result: &PeerResult{Name: peer.Name, Ours: ours, Note: peer.Note, Version: r.version(ctx, peer)}}
		if err := r.open(ctx, p, row, filepath.Join(stage.Row, strconv.Itoa(i))); err != nil {
			if ctx.Err() != nil {
				return res, ctx.Err()
			}
			if ours && errors.Is(err, errLacks) {
				res.Skipped = err.Error()
				r.Say("  " + res.Skipped)
				return res, nil
			}
			p.result.Fault = err.Error()
			r.Say(fmt.Sprintf("  %s is left out: %v", p.Name, err))
			if p.proc != nil {
				p.proc.Stop() // what does not answer is not to take the others' time
			}
		}
		players = append(players, p)
	}
	playing := func() (now []*player) {
		for _, p := range players {
			if p.result.Fault == "" {
				now = append(now, p)
			}
		}
		return now
	}
	for _, p := range playing() {
		if r.Warm <= 0 || row.Once || row.Parts != nil {
			break
		}
		r.sample(ctx, row, p, tool, r.Warm)
		if err := p.proc.Failed(); err != nil {
			p.result.Fault = err.Error()
		}
	}
	if row.Pace > 0 {
		if err := r.setPace(ctx, row, players, &res); err != nil {
			return res, err
		}
	}
	dice := mathrand.New(mathrand.NewPCG(r.Seed, number))
	every := max(1, row.Every)
	rounds := (r.Rounds + every - 1) / every
	if row.Once {
		rounds = 1
	}
	for round := range rounds {
		order := playing()
		dice.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
		chance := dice.Uint64()
		for _, p := range order {
			p.stage.Seed = chance
			s := r.sample(ctx, row, p, tool, r.Duration)
			if ctx.Err() != nil {
				return res, ctx.Err()
			}
			s.Round = round
			p.result.Samples = append(p.result.Samples, s)
			if s.Void != "" {
				r.Say(fmt.Sprintf("  round %d, %s: void: %s", round+1, p.Name, s.Void))
			} else {
				r.Say(fmt.Sprintf("  round %d, %s: %.0f %s, %.0f %% of its core, %.2f µs each; the load %.0f %% of its own", round+1, p.Name, s.Value, row.Unit, 100*s.Busy, s.CPU, 100*s.Load))
			}
			if err := p.proc.Failed(); err != nil {
				p.result.Fault = err.Error()
			}
		}
	}
	for _, p := range playing() {
		once, cancel := context.WithTimeout(ctx, toolTime)
		if err := row.Check(once, p.stage); err != nil {
			p.result.Fault = "after the load it does not answer rightly any more: " + err.Error()
		}
		cancel()
	}
	for _, p := range players {
		res.Peers = append(res.Peers, *p.result)
	}
	res.compute()
	for i, part := range row.Parts {
		res.Parts = append(res.Parts, res.part(i, part))
	}
	return res, nil
}

// open starts a player and waits until it gives the right answers.
func (r *run) open(ctx context.Context, p *player, row Row, dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	p.stage.Dir = dir
	var err error
	if p.stage.Port, err = p.stage.freePort(); err != nil {
		return err
	}
	if p.stage.TLS, err = p.stage.beyond().freePort(); err != nil { // where targets are, of rows about flows
		return err
	}
	if p.proc, err = p.Start(ctx, p.stage); err != nil {
		return err
	}
	p.stage.proc = p.proc
	patience := cmp.Or(row.Starts, startTime)
	late := time.After(patience)
	for {
		once, cancel := context.WithTimeout(ctx, toolTime)
		err := row.Check(once, p.stage)
		cancel()
		if err == nil && row.Ready != nil {
			err = row.Ready(ctx, p.stage)
			if err != nil {
				return fmt.Errorf("make it ready: %w", err)
			}
		}
		if err == nil {
			return nil
		}
		if failed := p.proc.Failed(); failed != nil {
			return failed
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-late:
			return fmt.Errorf("no right answer within %v: %w\n%s", patience, err, p.proc.Log())
		case <-time.After(again):
		}
	}
}

// setPace drives ours once as fast as it answers, and has all be asked at the row's share of that.
func (r *run) setPace(ctx context.Context, row Row, players []*player, res *RowResult) error {
	ours := players[0]
	if ours.result.Fault != "" {
		return nil // a run without ours fails
	}
	s := r.sample(ctx, row, ours, "", r.Duration)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if s.Void != "" {
		ours.result.Fault = "how much it does at most is not found: " + s.Void
	}
	res.Pace = row.Pace * float64(s.Count) / r.Duration.Seconds()
	r.Say(fmt.Sprintf("  ours does %.0f each second at most: all are asked %.0f", res.Pace/row.Pace, res.Pace))
	for _, p := range players {
		p.stage.Pace = res.Pace
	}
	return nil
}

// sample takes one.
func (r *run) sample(ctx context.Context, row Row, p *player, tool string, d time.Duration) Sample {
	more := row.Takes
	if more == 0 {
		more = toolTime
	}
	ctx, cancel := context.WithTimeoutCause(ctx, d+more, fmt.Errorf("not done %v after its time", more))
	defer cancel()
	servers, loads := timesOf(r.Servers), timesOf(r.Loads)
	cpu, own, origin, asked, began := p.proc.CPU(), ownCPU(), time.Duration(0), r.origin.asked(), time.Now()
	if r.plain != nil {
		origin = r.plain.CPU()
	}
	var m Measured
	var err error
	var used time.Duration
	if row.Load.Own != nil {
		m, err = row.Load.Own(ctx, p.stage, d)
	} else {
		argv := append([]string{tool}, p.stage.fill(row.Load.Args, d)...)
		var out string
		if out, used, err = r.starter.run(ctx, r.Loads, p.stage.Row, argv); err == nil {
			m, err = parse(row.Load.Tool, out)
		}
	}
	wall := time.Since(began)
	cpu, own, asked = p.proc.CPU()-cpu, ownCPU()-own, r.origin.asked()-asked
	if r.plain != nil {
		origin = r.plain.CPU() - origin
	}
	serversAfter, loadsAfter := timesOf(r.Servers), timesOf(r.Loads)
	share := func(d time.Duration, cores []int) float64 {
		if wall < 10*tick { // what is counted in ticks says nothing of it
			return 0
		}
		return max(0, d.Seconds()/wall.Seconds()/float64(len(cores)))
	}
	s := Sample{Count: m.Count, Value: m.Value, Parts: m.Parts, Mean: micros(m.Mean), P50: micros(m.P50), P99: micros(m.P99), Busy: share(cpu, r.Servers),
		Load:        min(1, share(used+own-m.Idle, r.Loads)),
		Others:      share(serversAfter.busy-servers.busy-cpu, r.Servers),
		OthersLoads: share(loadsAfter.busy-loads.busy-used-own-origin, r.Loads),
		Steal:       max(share(serversAfter.steal-servers.steal, r.Servers), share(loadsAfter.steal-loads.steal, r.Loads))}
	if m.CPU > 0 {
		cpu = m.CPU
	}
	if m.Count > 0 {
		s.CPU = micros(cpu) / float64(m.Count)
	}
	switch {
	case p.proc.Failed() != nil:
		s.Void = p.proc.Failed().Error()
	case err != nil:
		s.Void = err.Error()
	case m.Failed != "":
		s.Void = m.Failed
	case m.Count == 0:
		s.Void = "nothing was done"
	case len(m.Parts) != len(row.Parts):
		s.Void = fmt.Sprintf("%d things were found of %d", len(m.Parts), len(row.Parts))
	case m.Bytes > 0 && m.Bytes < int64(float64(m.Count*row.Size)*mostBytes):
		s.Void = fmt.Sprintf("%d answers of %d bytes had %d bytes in all", m.Count, row.Size, m.Bytes)
	case row.Hits && asked > 0:
		s.Void = fmt.Sprintf("the origin was asked %d times, so that these are not all hits", asked)
	}
	return s
}

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

// ownCPU is how long this process has computed.
func ownCPU() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// fill puts the stage's values into arguments.
func (s Stage) fill(args []string, d time.Duration) []string {
	replace := strings.NewReplacer("{host}", s.Host, "{behind}", s.Behind, "{port}", strconv.Itoa(s.Port), "{tls}", strconv.Itoa(s.TLS),
		"{seconds}", strconv.Itoa(int(d.Seconds())), "{row}", s.Row, "{dir}", s.Dir, "{origin}", s.Origin, "{plain}", s.Plain,
		"{cert}", s.Cert, "{key}", s.Key, "{both}", s.Both, "{places}", s.places, "{name}", Name)
	var filled []string
	for _, a := range args {
		filled = append(filled, replace.Replace(a))
	}
	return filled
}

// Fill is a text with {host}, {behind}, {port}, {tls}, {row}, {dir}, {origin}, {plain}, {cert}, {key}, {both}, {places} and {name} replaced.
func (s Stage) Fill(text string) string { return s.fill([]string{text}, 0)[0] }

// Write writes a file into the server's folder, filled; folders of its path are made. It returns its path.
func (s Stage) Write(name, text string) (string, error) {
	file := filepath.Join(s.Dir, name)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return "", err
	}
	return file, os.WriteFile(file, []byte(s.Fill(text)), 0o644)
}

// Start starts a program on the servers' cores, with more environment.
func (s Stage) Start(env []string, argv ...string) (*Process, error) {
	return s.startOn(s.run.Servers, env, argv...)
}

func (s Stage) startOn(cores []int, env []string, argv ...string) (*Process, error) {
	argv = s.fill(argv, 0)
	program := s.run.find(Need{Program: argv[0]})
	if program == "" {
		return nil, fmt.Errorf("%s is not installed", argv[0])
	}
	if s.in != nil { // ip becomes the program
		argv = slices.Concat([]string{"ip", "netns", "exec", s.in.Name, program}, argv[1:])
		program = s.run.find(Need{Program: "ip"})
	}
	cmd := exec.Command(program, argv[1:]...)
	cmd.Env = slices.Concat(os.Environ(), env)
	return s.run.starter.start(cores, s.Dir, cmd)
}

// find is the path of what is needed; "" if it is not there.
func (r *run) find(n Need) string {
	if n.File != "" {
		if found, _ := filepath.Glob(n.File); len(found) > 0 {
			return found[0]
		}
		return ""
	}
	if strings.Contains(n.Program, "/") {
		return n.Program
	}
	// Daemons are in folders that a user's PATH may lack.
	for _, dir := range slices.Concat(r.Path, filepath.SplitList(os.Getenv("PATH")), []string{"/usr/local/sbin", "/usr/sbin", "/sbin"}) {
		file := filepath.Join(dir, n.Program)
		if info, err := os.Stat(file); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return file
		}
	}
	return ""
}

// version is that of a program, as it says itself; "" if that is not understood.
func (r *run) version(ctx context.Context, p Peer) string {
	if len(p.Needs) == 0 {
		return ""
	}
	if p.Module != "" {
		info, err := buildinfo.ReadFile(r.find(p.Needs[0]))
		if err != nil {
			return ""
		}
		for _, m := range append(info.Deps, &info.Main) {
			if m.Path == p.Module {
				return strings.TrimPrefix(m.Version, "v")
			}
		}
	}
	if len(p.Version) == 0 {
		return ""
	}
	ctx, cancel := context.WithTimeout(ctx, toolTime)
	defer cancel()
	out, _, _ := r.starter.run(ctx, r.Loads, r.dir, append([]string{r.find(p.Needs[0])}, p.Version...)) // some print it and fail
	return regexp.MustCompile(`\d+(\.\d+)+`).FindString(out)
}

// install says how to get what is missing: one line for what Debian has, and one for each thing that must be made.
func install(missing map[Need]bool) (lines []string) {
	var packages []string
	for n := range missing {
		if n.Package != "" {
			packages = append(packages, n.Package)
		} else if n.Make != "" {
			lines = append(lines, n.Make)
		}
	}
	slices.Sort(lines)
	lines = slices.Compact(lines)
	if len(packages) > 0 {
		slices.Sort(packages)
		lines = slices.Insert(lines, 0, "apt-get install -y --no-install-recommends "+strings.Join(slices.Compact(packages), " "))
	}
	return lines
}

// toolPackages are Debian's packages of the tools that make load.
func toolPackages() map[string]string {
	return map[string]string{"wrk": "wrk", "h2load": "nghttp2-client", "dnsperf": "dnsperf"}
}

// freePort is a port that is free for TCP and UDP now.
func freePort(host string) (int, error) { return freePortOf(host, net.Listen, net.ListenPacket) }

// freePort is one where the stage's servers listen.
func (s Stage) freePort() (int, error) {
	if s.in != nil {
		return freePortOf(s.Host, s.in.Listen, s.in.ListenPacket)
	}
	return freePort(s.Host)
}

func freePortOf(host string, listen func(network, address string) (net.Listener, error), hear func(network, address string) (net.PacketConn, error)) (int, error) {
	var last error
	for range 100 {
		l, err := listen("tcp", net.JoinHostPort(host, "0"))
		if err != nil {
			return 0, fmt.Errorf("find a free port: %w", err)
		}
		port := l.Addr().(*net.TCPAddr).Port
		c, err := hear("udp", l.Addr().String())
		l.Close()
		if err == nil {
			c.Close()
			return port, nil
		}
		last = err
	}
	return 0, fmt.Errorf("find a free port: %w", last)
}

// certify makes the certificate that all servers show.
func certify(s Stage) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: Name}, DNSNames: []string{Name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(7 * 24 * time.Hour), KeyUsage: x509.KeyUsageDigitalSignature}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	cert, secret := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})
	return errors.Join(os.WriteFile(s.Cert, cert, 0o600), os.WriteFile(s.Key, secret, 0o600), os.WriteFile(s.Both, slices.Concat(cert, secret), 0o600))
}

// folders is how the folders of runs are named: with the process, so that a later run knows what one has left that was killed.
const folders = "perigee-bench-%d-"

// makeFolder makes the folder of a run, and removes those of runs that are no more.
func makeFolder(in string) (string, error) {
	if in == "" {
		in = os.TempDir()
	}
	entries, err := os.ReadDir(in)
	if err != nil {
		return "", err
	}
	for _, e := range entries {
		pid := 0
		if n, _ := fmt.Sscanf(e.Name(), folders, &pid); n == 1 && e.IsDir() {
			if _, alive := stat(pid); !alive {
				os.RemoveAll(filepath.Join(in, e.Name()))
			}
		}
	}
	return os.MkdirTemp(in, fmt.Sprintf(folders, os.Getpid()))
}

// describe says what machine this is.
func describe(servers, loads []int) Machine {
	m := Machine{Cores: runtime.NumCPU(), Servers: servers, Loads: loads, LoadBefore: loadAverage(), Go: runtime.Version()}
	if data, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(data)) {
			if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				m.CPU = strings.TrimSpace(value)
				break
			}
		}
	}
	if data, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		m.Kernel = "Linux " + strings.TrimSpace(string(data))
	}
	return m
}

func loadAverage() float64 {
	data, _ := os.ReadFile("/proc/loadavg")
	first, _, _ := strings.Cut(string(data), " ")
	load, _ := strconv.ParseFloat(first, 64)
	return load
}
