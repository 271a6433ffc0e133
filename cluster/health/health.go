// Package health is what is observed of targets and endpoints: verdicts, the tracker that does not
// flap, and the merge of many nodes' views into one table. It is pure: it probes nothing, sends
// nothing and reads no clock; cluster/probe and node feed it.
package health

import (
	"net/netip"
	"time"
)

// Key names one thing that is checked.
type Key string

// TargetKey is the key of a target of a target group.
func TargetKey(group string, target netip.AddrPort) Key {
	return Key("target/" + group + "/" + target.String())
}

// CheckKey is the key of a HealthCheck resource.
func CheckKey(name string) Key { return Key("check/" + name) }

// Verdict is what is held true of one key.
type Verdict struct {
	Healthy bool          `json:"healthy"`
	Reason  string        `json:"reason,omitempty"` // of the last failure, for people
	Since   time.Time     `json:"since"`            // of the last turn
	Stands  time.Duration `json:"stands,omitempty"` // how long it can stand at least: interval × probes needed to turn it
}

// Table is the merged verdicts at one moment, immutable. A nil Table knows nothing.
type Table struct {
	verdicts map[Key]Verdict
}

// NewTable makes a table of the verdicts; it takes over the map.
func NewTable(verdicts map[Key]Verdict) *Table { return &Table{verdicts: verdicts} }

// Lookup returns the verdict on key, if there is one. What has no verdict yet is judged by the caller:
// a Route 53 health check is healthy until there is data, an ELB target is initial.
func (t *Table) Lookup(key Key) (Verdict, bool) {
	if t == nil {
		return Verdict{}, false
	}
	v, ok := t.verdicts[key]
	return v, ok
}
