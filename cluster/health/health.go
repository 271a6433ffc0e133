// Package health is what is observed of targets, endpoints and health checks: verdicts, the tracker that does not flap,
// the witness that weighs what the data path saw, and the merger that makes one table of many nodes' views. It is pure: it
// probes nothing, sends nothing and reads no clock; cluster/probe and node feed it. When observers fall silent the merge
// goes by those that are left; of what nobody looks at there is no verdict, and the caller decides. One observer that
// lies or flaps turns nothing that others see well, and one client's failures condemn nothing.
package health

import (
	"net/netip"
	"strings"
	"time"
)

// Key names one thing that is checked.
type Key string

const (
	targetPrefix   = "target/"
	checkPrefix    = "check/"
	endpointPrefix = "endpoint/"
)

// TargetKey is the key of a target of a target group.
func TargetKey(group string, target netip.AddrPort) Key {
	return Key(targetPrefix + group + "/" + target.String())
}

// CheckKey is the key of a HealthCheck resource.
func CheckKey(name string) Key { return Key(checkPrefix + name) }

// EndpointKey is the key of an accelerator's endpoint that is given by address, in a region; address is where it is checked.
func EndpointKey(accelerator, region string, address netip.AddrPort) Key {
	return Key(endpointPrefix + accelerator + "/" + region + "/" + address.String())
}

// IsTarget says whether the key is that of a target of a target group.
func (k Key) IsTarget() bool { return strings.HasPrefix(string(k), targetPrefix) }

// IsCheck says whether the key is that of a HealthCheck resource.
func (k Key) IsCheck() bool { return strings.HasPrefix(string(k), checkPrefix) }

// IsEndpoint says whether the key is that of an accelerator's endpoint.
func (k Key) IsEndpoint() bool { return strings.HasPrefix(string(k), endpointPrefix) }

// Verdict is what is held true of one key.
type Verdict struct {
	Healthy bool      `json:"healthy"`
	Reason  string    `json:"reason,omitempty"` // why it is unhealthy, for people: of the failure that turned it
	Since   time.Time `json:"since"`            // of the last turn
	// Stands is how long it can stand at least: interval × results still needed to turn it. It shrinks while results contradict.
	Stands time.Duration `json:"stands,omitempty"`
	// LastFailure is why the last probe that failed did, also while healthy, and LastFailureAt when; empty and zero: none has.
	LastFailure   string    `json:"lastFailure,omitempty"`
	LastFailureAt time.Time `json:"lastFailureAt,omitzero"`
}
