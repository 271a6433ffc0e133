//go:build linux

package bench

import (
	"context"
	"time"
)

// Bounds of a run.
const (
	MaxRounds   = 100
	MaxDuration = 5 * time.Minute // of one sample
	MaxRows     = 100
	MaxPeers    = 20 // of one row
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
	Unit  string // what is counted each second
	Load  Load
	Ours  Peer
	Peers []Peer
	// Prepare writes into the row's folder what the load or the servers need, before any of them starts; nil: nothing.
	Prepare func(s Stage) error
	// Check asks the server, and says what is wrong with its answers. It is asked before the server is timed, and after.
	Check func(ctx context.Context, s Stage) error
	// Hits says that the counting origin must not be asked while a sample is taken: what is measured is a cache.
	Hits bool
	// Plain says that the servers ask the plain origin.
	Plain bool
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
	Rate           float64       // each second
	Mean, P50, P99 time.Duration // of one; 0: the tool does not say
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
	Dir       string // the server's folder
	Row       string // the row's
	Host      string // where the server is to listen
	Port, TLS int    // for the plain protocol, and for TLS
	Origin    string // HOST:PORT of an origin that counts what it is asked; /N is a body of N bytes
	Plain     string // HOST:PORT of an origin as fast as there is one, of rows that ask for it: /1024
	Program   string // the perigee binary
	Cert, Key string // files in PEM: a certificate of Name and its key, the same for all servers
	Both      string // a file with both

	run    *run
	places string // a file of places in MaxMind's format
}

// Name is the host that HTTP servers are asked for.
const Name = "bench.test"
