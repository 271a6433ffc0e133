// Package page says what a run of a scenario was: as a table on a terminal, as JSON, and as one HTML file that needs
// nothing else: no network, no other file, no script to be readable. It is not a dashboard, and it measures nothing: it
// is given a Run and draws it. What is too much to draw is thinned or cut at the bounds below, and the page says so;
// figures are always of everything it was given. Every text of a Run may be a stranger's: it is escaped, and cut
// where it is long.
package page

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"time"
)

// Bounds of what a page and its JSON hold. What is beyond is left out, and both say how much that is.
const (
	maxSamples  = 100_000 // of all series: they are thinned together
	maxEvents   = 10_000  // the first ones are kept
	maxSteps    = 10_000  // as a scenario may have
	maxSeries   = 200
	maxPlots    = 48  // series that have a plot of their own; the others have a row in the table
	maxSites    = 60  // as a world may have
	maxClients  = 200 // on the map
	maxFigures  = 500
	maxText     = 2_000   // runes of a result, a note or an event
	maxScenario = 200_000 // bytes
)

// Run is what happened in one run of a scenario. All times in it are since Began. Its zero value is a valid run of
// nothing. In JSON, durations are nanoseconds.
type Run struct {
	Title    string        `json:"title"`
	Scenario string        `json:"scenario"` // its text
	Testbed  string        `json:"testbed"`  // its name
	WAN      string        `json:"wan"`      // what its links are made of: netem, userspace
	Machine  string        `json:"machine"`  // what it ran on: processors, memory, kernel
	Began    time.Time     `json:"began"`
	Took     time.Duration `json:"took"`
	Passed   bool          `json:"passed"`
	Fault    string        `json:"fault,omitempty"` // what did not come true
	Sites    []Site        `json:"sites"`
	Links    []Link        `json:"links"`
	Clients  []Client      `json:"clients"`
	Steps    []Step        `json:"steps"`
	Series   []Series      `json:"series"`
	Events   []Event       `json:"events"`
	Figures  []Figure      `json:"figures"`
}

// Site is a place with hosts. Lat and Lon are degrees, north and east.
type Site struct {
	Name  string   `json:"name"`
	City  string   `json:"city,omitempty"`
	Lat   float64  `json:"lat"`
	Lon   float64  `json:"lon"`
	Hosts []string `json:"hosts,omitempty"`
}

// Link is the way between two sites, and how long it takes there and back.
type Link struct {
	A   string        `json:"a"`
	B   string        `json:"b"`
	RTT time.Duration `json:"rtt"`
}

// Client is a place that asks. Site is where its access link leads.
type Client struct {
	Name string  `json:"name"`
	City string  `json:"city,omitempty"`
	Lat  float64 `json:"lat"`
	Lon  float64 `json:"lon"`
	Site string  `json:"site,omitempty"`
}

// Step is one line of the scenario and what came of it.
type Step struct {
	Line   int           `json:"line"` // in the scenario's text, from 1
	Text   string        `json:"text"`
	Verb   string        `json:"verb"`
	At     time.Duration `json:"at"`
	Took   time.Duration `json:"took"`
	Times  int           `json:"times,omitempty"` // it was taken
	Result string        `json:"result,omitempty"`
	Failed bool          `json:"failed,omitempty"` // it did not come true
	Fault  bool          `json:"fault,omitempty"`  // it broke something: kill, cut, slow …
	Note   string        `json:"note,omitempty"`
}

// Series is one thing that was asked again and again. Name begins with how and ends with who, such as "get lagos", so
// that the page finds the client by its last word that is a client's name, unless Client says it.
type Series struct {
	Name    string   `json:"name"`
	Client  string   `json:"client,omitempty"`
	Unit    string   `json:"unit,omitempty"` // that its times are shown in: µs, ms or s; none: as fits
	Samples []Sample `json:"samples"`
}

// Sample is one asking. Took is until the answer, or until it failed.
type Sample struct {
	At   time.Duration `json:"at"`
	Took time.Duration `json:"took"`
	OK   bool          `json:"ok"`
	By   string        `json:"by,omitempty"` // the POP that served
	Note string        `json:"note,omitempty"`
}

// Event is something a node said of itself. Causes are IDs of events of the same node, or of another as
// NODE/ID or, where no two nodes use the same, by ID.
type Event struct {
	At     time.Duration `json:"at"`
	Node   string        `json:"node"`
	Kind   string        `json:"kind"`
	Text   string        `json:"text"`
	ID     string        `json:"id"`
	Causes []string      `json:"causes,omitempty"`
}

// Figure is a number that was measured, and what was aimed at, in words ("≤ 4 s"). Without an aim it is told only.
type Figure struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit,omitempty"`
	Aim   string  `json:"aim,omitempty"`
	OK    bool    `json:"ok"`
}

// WriteJSON writes the run, cut to its bounds, as one indented JSON object: the fields above, and what was read from
// them: the changes by their letters, what each did to each series, and each series in numbers. Its errors are those
// of w.
func (r Run) WriteJSON(w io.Writer) error {
	r, left := r.bounded()
	data, _, err := r.data(left)
	if err != nil {
		return err
	}
	var b bytes.Buffer
	if err := json.Indent(&b, data, "", "  "); err != nil {
		return fmt.Errorf("indent the run's JSON: %w", err)
	}
	b.WriteByte('\n')
	if _, err := b.WriteTo(w); err != nil {
		return fmt.Errorf("write the run as JSON: %w", err)
	}
	return nil
}
