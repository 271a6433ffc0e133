// Package health is what is observed of targets and endpoints: verdicts, the tracker that does not
// flap, and the merge of many nodes' views into one table. It is pure: it probes nothing, sends
// nothing and reads no clock; cluster/probe and node feed it. When observers fall silent the merge
// goes by those that are left; of what nobody looks at there is no verdict, and the caller decides.
package health

import (
	"net/netip"
	"strings"
	"time"
)

// Key names one thing that is checked.
type Key string

const (
	targetPrefix = "target/"
	checkPrefix  = "check/"
)

// TargetKey is the key of a target of a target group.
func TargetKey(group string, target netip.AddrPort) Key {
	return Key(targetPrefix + group + "/" + target.String())
}

// CheckKey is the key of a HealthCheck resource.
func CheckKey(name string) Key { return Key(checkPrefix + name) }

// IsCheck says whether the key is that of a HealthCheck resource.
func (k Key) IsCheck() bool { return strings.HasPrefix(string(k), checkPrefix) }

// Verdict is what is held true of one key.
type Verdict struct {
	Healthy bool          `json:"healthy"`
	Reason  string        `json:"reason,omitempty"` // of the last failure, for people
	Since   time.Time     `json:"since"`            // of the last turn
	Stands  time.Duration `json:"stands,omitempty"` // how long it can stand at least: interval × probes needed to turn it
}
