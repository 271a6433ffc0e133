//go:build linux

package bench

import (
	"context"
	"time"

	"github.com/perigee-net/perigee/testbed/netns"
)

// Bounds of a run.
const (
	MaxRounds   = 100
	MaxDuration = 5 * time.Minute // of one sample
	MaxRows     = 100
	MaxPeers    = 20 // of one row
	MaxObjects  = 20_000_000
)

// Config is what a run is told.
type Config struct {
	Program  string        // the perigee binary that is measured
	Dir      string        // where the servers have their folders, in one that is made and removed; "": the system's for temporary files
	Rows     []Row         // what is measured; nil: Rows()
	Only     []string      // names of rows, with * and ? as path.Match has them; nil: all
	Peers    []string      // whom to measure ours beside; nil: all that are installed; "none": nobody
	Path     []string      // folders where programs are looked for before PATH: those that are built, not installed
	Rounds   int           // samples of each; 0: 7
	Duration time.Duration // of one sample, whole seconds; 0: 5 s
	Warm     time.Duration // of load on each before the first sample, whole seconds; 0: 2 s; negative: none
	Servers  []int         // cores of the servers; nil: the first
	Loads    []int         // cores of the load; nil: all others
	Seed     uint64        // of the order of samples; 0: from the clock
	Objects  int           // that rows of memory fill caches with; 0: 1,000,000
	Idle     int           // connections that rows of memory keep; 0: 10,000
	Profile  string        // a folder: ours writes CPU and heap profiles there, in one folder for each row; "": none. It costs ours some percent
	Micro    string        // a file with what `go test -bench` printed, for the same report; "": none

	Out  func(table string) // takes the table; nil: nobody
	JSON string             // a file for all figures; "": none
	HTML string             // a file for the page; "": none
	Say  func(line string)  // hears what is going on; nil: nobody
}

// Row is one work that several can do.
type Row struct {
	Name  string // short, unique: small letters, digits, hyphens
	Work  string // what is done, in one line
	Unit  string // what is counted each second; or, with Less, what is measured
	Less  bool   // less is better: what is measured is a time or a size
	Load  Load
	Ours  Peer
	Peers []Peer
	// Lacks says why this machine can't do the work, whoever is to; "" or nil: it can.
	Lacks func() string
	// Around makes what the servers stand in, before anything else, and says so in the stage; over takes it away. nil: they stand on this machine.
	Around func(ctx context.Context, s *Stage) (over func(), err error)
	// Parts are what a sample finds instead of one value, in this order, each with goals of its own; Unit and Less are theirs. nil: it finds one value.
	Parts []Part
	// Every says that a sample takes so long that there is one round for each so many that are asked for; 0: one.
	Every int
	// Prepare writes into the row's folder what the load or the servers need, before any of them starts; nil: nothing.
	Prepare func(s Stage) error
	// Check asks the server, and says what is wrong with its answers. It is asked before the server is timed, and after.
	Check func(ctx context.Context, s Stage) error
	// Hits says that the counting origin must not be asked while a sample is taken: what is measured is a cache.
	Hits bool
	// Size is that of each body: a load that got fewer bytes than its answers must have is void; 0: unknown.
	Size int64
	// Plain says that the servers ask the plain origin.
	Plain bool
	// Ready brings a server to where it is measured, once, before its first sample; nil: it is there.
	Ready func(ctx context.Context, s Stage) error
	// Pace is the share of what ours does at most at which all are asked: ours is driven once as fast as it answers, then Stage.Pace is said
	// to all. 0: no pace.
	Pace float64
	// Once says that a sample needs a server that has done nothing yet, so that there is one of each, without load before it.
	Once bool
	// Starts is how long a server may take until it gives the right answer; 0: a minute.
	Starts time.Duration
	// Takes is how long a sample may take beside its duration; 0: 20 s.
	Takes time.Duration
	// Goals are what is aimed at.
	Goals []Goal
}

// Part is one of several things that a row measures.
type Part struct {
	Name  string
	Goals []Goal
}

// Goal is what ours should reach.
type Goal struct {
	Peer string `json:"peer,omitempty"` // beside whom; "": nobody
	// Want is how many times the peer's figure ours should be at least, or, where less is better, at most; without a peer, the figure itself.
	Want float64 `json:"want"`
}

// Load is who makes the load. In Args {host}, {port}, {tls} (the port of TLS), {seconds} and {row} (the row's folder) are replaced.
type Load struct {
	Tool string // wrk, h2load, dnsperf; "own": Own
	Args []string
	Own  func(ctx context.Context, s Stage, d time.Duration) (Measured, error)
}

// Measured is what a tool found.
type Measured struct {
	Count          int64         // of what was done
	Value          float64       // each second; or what else the row's unit says
	Bytes          int64         // that came, heads and encryption included or not; 0: the tool does not say
	Mean, P50, P99 time.Duration // of one; 0: the tool does not say
	CPU            time.Duration // of the server, where it computed before the sample; 0: what it did within it
	Idle           time.Duration // in which the load computed to find nothing to do; 0: it sleeps
	Parts          []Took        // what was found of each of the row's parts
	Failed         string        // what went wrong: the sample is void; "": nothing
}

// Peer is one program that can do a row's work.
type Peer struct {
	Name    string
	Needs   []Need
	Version []string // arguments that make the first of Needs print its version, which is the first number with dots
	Module  string   // or, of a program in Go: the module whose version its build information has
	Start   func(ctx context.Context, s Stage) (*Process, error)
	Note    string // what it does otherwise than the others
}

// Need is a program or file that must be there.
type Need struct {
	Program string // looked for on the path
	File    string // or a file; * and ? as path.Match has them
	Package string // Debian's package that has it; "": Make
	Make    string // what makes it, from the root of the project
}

// Stage is what a server, its check and its load find.
type Stage struct {
	Dir       string  // the server's folder
	Row       string  // the row's
	Host      string  // where the server is to listen
	Behind    string  // where its targets do, of rows about flows
	Port, TLS int     // for the plain protocol, and for TLS
	Origin    string  // HOST:PORT of an origin that counts what it is asked; /N and all below it are bodies of N bytes
	Plain     string  // HOST:PORT of an origin as fast as there is one, of rows that ask for it: 1 KiB that is not to be stored, whatever the path
	Program   string  // the perigee binary
	Pace      float64 // requests each second that are due, of rows with a pace; 0: as many as are answered
	Objects   int     // to fill a cache with
	Idle      int     // connections to keep
	Cert, Key string  // files in PEM: a certificate of Name and its key, the same for all servers
	Both      string  // a file with both

	Seed uint64 // of whatever chance there is in a sample: all have the same in one round

	run    *run
	in     *netns.Namespace // where servers are; nil: here
	ocean  *ocean           // nil: none
	row    string           // its name
	proc   *Process         // the server; nil while it starts
	places string           // a file of places in MaxMind's format
}

// Name is the host that HTTP servers are asked for.
const Name = "bench.test"
