// Package api is how people and programs talk to a node: HTTP with JSON, at the API's address by TLS and at a unix
// socket in the data folder, and between nodes at the control port. It has the wire types, the one table of routes that
// both the server and the OpenAPI document are made of, and the client, so that the tool, the document and the node
// cannot disagree.
//
// It decides nothing but who may ask: a Backend answers, and a node whose answer needs the leader forwards the
// request there. Whoever shows no right is told nothing, and costs no more than the reading of a header.
//
// When things break: a body, a query and the number of those who ask are bounded, and what is beyond is refused with
// a status of its own; without a leader, changes are refused with the last one's address while reading goes on; a
// stream that breaks ends the connection, so that no half of an answer passes for a whole one.
package api

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/perigee-net/perigee/cluster/event"
	"github.com/perigee-net/perigee/cluster/identity"
	"github.com/perigee-net/perigee/cluster/trace"
	"github.com/perigee-net/perigee/cluster/view"
)

// Duration is a span of time as Go writes it: 90s, 1h30m. It is never negative.
type Duration time.Duration

// MarshalText writes it as time.Duration does.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText reads what time.ParseDuration reads.
func (d *Duration) UnmarshalText(text []byte) error {
	span, err := time.ParseDuration(string(text))
	switch {
	case err != nil:
		return fmt.Errorf("%.40q is no duration: want 90s or 1h30m", text)
	case span < 0:
		return errors.New("a duration is not negative")
	}
	*d = Duration(span)
	return nil
}

// File is one file of YAML documents, by the name that errors are to mention.
type File struct {
	Name string `json:"name"`
	Data string `json:"data"`

	// Parts are the file in the place of Data, for apply only: one after the other, what stands already and what is new. Length is that of the whole file in bytes,
	// Sum its CRC-32C.
	Parts  []Part `json:"parts,omitempty"`
	Length int    `json:"length,omitempty"`
	Sum    uint32 `json:"sum,omitempty"`
}

// Part is a part of a file: Text; or, with Kind and Name, so many bytes from From on of that resource as it is written since Revision. Where
// it has changed since, the file must be sent whole (409).
type Part struct {
	Text     string `json:"text,omitempty"`
	Kind     string `json:"kind,omitempty"`
	Name     string `json:"name,omitempty"`
	Revision uint64 `json:"revision,omitempty"` // that at which the resource was written, as in ResourceList
	From     int    `json:"from,omitempty"`
	Length   int    `json:"length,omitempty"`
}

// Blocks is what a resource's document is made of, one block after the other: a block ends with a line whose CRC-32C is a multiple of 64, or after 16 KiB.
type Blocks struct {
	Kind     string `json:"kind"`
	Name     string `json:"name"`
	Revision uint64 `json:"revision"` // at which it was written
	Lengths  []int  `json:"lengths"`  // in bytes
	Sums     []byte `json:"sums"`     // of each the first 16 bytes of its SHA-256
}

// Ref names a resource.
type Ref struct {
	Kind string `json:"kind"`
	Name string `json:"name"`
}

// ApplyRequest asks for one change: all documents of all files, all deletions and all pruning, or nothing.
type ApplyRequest struct {
	// ID makes a repeated request harmless: the cluster applies it once. Chosen by the client.
	ID     string `json:"id,omitempty"`
	Files  []File `json:"files,omitempty"`
	Delete []Ref  `json:"delete,omitempty"`
	// Prune deletes what has all these labels and is in no file.
	Prune *Prune `json:"prune,omitempty"`
	// DryRun validates and says what would change.
	DryRun bool `json:"dryRun,omitempty"`
	// Note is kept with the revision, for people.
	Note string `json:"note,omitempty"`

	// Expect is the revision that the change must follow, by the header If-Match; nil takes any.
	Expect *uint64 `json:"-"`
}

// Prune names resources by their labels. At least one label is needed.
type Prune struct {
	Labels map[string]string `json:"labels"`
}

// ApplyResponse is what a change did.
type ApplyResponse struct {
	Revision uint64   `json:"revision"`
	Changes  []Change `json:"changes"`
}

// Change is what becomes of one resource.
type Change struct {
	Op     string   `json:"op"` // created, updated, deleted
	Kind   string   `json:"kind"`
	Name   string   `json:"name"`
	Fields []string `json:"fields,omitempty"` // "listeners[0].port: 80 → 8080"
}

// RollbackRequest asks that the spec be again as it was at a revision, by a new revision.
type RollbackRequest struct {
	ID       string `json:"id,omitempty"` // as ApplyRequest's
	Revision uint64 `json:"revision"`
	DryRun   bool   `json:"dryRun,omitempty"`
	Note     string `json:"note,omitempty"`

	Expect *uint64 `json:"-"` // as ApplyRequest's
}

// Resource is one resource, as it was written and as it is understood.
type Resource struct {
	Kind     string `json:"kind"`
	Name     string `json:"name"`
	Revision uint64 `json:"revision"` // of its last change
	YAML     string `json:"yaml"`
	Spec     any    `json:"spec,omitempty"` // with defaults; absent where this release does not understand it
}

// ResourceList is the resources of one kind, or of all.
type ResourceList struct {
	Revision  uint64     `json:"revision"`
	Resources []Resource `json:"resources"`
}

// ResourcesQuery says which resources are asked for; empty fields mean all.
type ResourcesQuery struct {
	Kind, Name string
	// Fresh asks the leader, so that every change that was acknowledged before the question is in the answer.
	Fresh bool
}

// Record is one change of the past: who, when, why, and of what.
type Record struct {
	Revision uint64    `json:"revision"`
	Time     time.Time `json:"time"`
	Author   string    `json:"author"`
	Note     string    `json:"note,omitempty"`
	Put      []Ref     `json:"put,omitempty"`
	Delete   []Ref     `json:"delete,omitempty"`
}

// History is the last changes, newest first.
type History struct {
	Revision uint64   `json:"revision"` // of now
	Records  []Record `json:"records"`
}

// HistoryQuery says which changes are asked for.
type HistoryQuery struct {
	Limit int  // 1 to MaxHistory
	Own   bool // of the cluster's own records (nodes, tokens, keys), not of the spec
}

// RevisionDetail is one change of the past with what it changed.
type RevisionDetail struct {
	Record
	Changes []Change `json:"changes"`
}

// WaitResponse is which live nodes run a revision.
type WaitResponse struct {
	Revision uint64        `json:"revision"`
	Nodes    []NodeRunning `json:"nodes"`
	// Complete: every live node runs the revision or a newer one. Where it is false a node refused it, or time was up.
	Complete bool `json:"complete"`
}

// NodeRunning is what one live node runs.
type NodeRunning struct {
	Name    string `json:"name"`
	Running uint64 `json:"running"`
	Refused string `json:"refused,omitempty"` // why it does not run a newer one
}

// Status is the network as one node sees it.
type Status struct {
	Node     string `json:"node"`
	Cluster  string `json:"cluster"`
	Leader   string `json:"leader"`   // "" while there is none
	Revision uint64 `json:"revision"` // the newest of the spec that this node has
	Running  uint64 `json:"running"`  // the revision its data plane runs
	Own      uint64 `json:"own"`      // the newest of the cluster's own records that this node has
	Refused  string `json:"refused,omitempty"`
	// Source is the node that this one follows, over Depth others; "" for a voter, and while there is none.
	Source string `json:"source,omitempty"`
	Depth  int    `json:"depth,omitempty"`
	// Expires is when this node's certificate ends, unless it is renewed.
	Expires time.Time `json:"expires,omitzero"`
	// Voters is how many vote in Raft, Missing those of them that are not live: a majority must be.
	Voters  int            `json:"voters"`
	Missing []string       `json:"missing,omitempty"`
	Members []MemberStatus `json:"members"`
	// AnswersDiffer are groups of nodes that answer names otherwise than each other and should not: a fault. Empty, as a rule.
	AnswersDiffer []AnswersDiffer `json:"answersDiffer,omitempty"`
}

// AnswersDiffer is nodes that run the same revision, see the same, and yet answer names otherwise than each other.
type AnswersDiffer struct {
	Revision uint64     `json:"revision"`
	Nodes    [][]string `json:"nodes"` // those that answer alike together, most first
}

// MemberStatus is one live node.
type MemberStatus struct {
	view.Member
	Running uint64        `json:"running"`           // the revision its data plane runs
	Refused string        `json:"refused,omitempty"` // why it does not run a newer one
	Doors   string        `json:"doors,omitempty"`   // which of its doors stay closed, and why
	Vote    bool          `json:"vote"`              // it votes in Raft
	Follows string        `json:"follows,omitempty"` // the node whose watch stream it follows; "": it is in Raft, or follows nobody
	RTT     time.Duration `json:"rtt,omitempty"`     // measured from the node that was asked, in nanoseconds
	Up      bool          `json:"up"`                // the backbone of the node that was asked reaches it
	// Distance is the estimate of the round trip from the node that was asked, and By what it rests on: measured, region, coordinates.
	Distance time.Duration `json:"distance,omitempty"`
	By       string        `json:"by,omitempty"`
	Fenced   bool          `json:"fenced,omitempty"` // it has missed orders, and catches up
}

// HealthEntry is the verdict on one key, and how it came about.
type HealthEntry struct {
	Key     string    `json:"key"`
	Healthy bool      `json:"healthy"`          // what everything that routes goes by: the quorum's view, with what lies over it
	Reason  string    `json:"reason,omitempty"` // why not
	Since   time.Time `json:"since,omitzero"`
	// Stands is how long the verdict can stand at least, in nanoseconds: no answer that rests on it lives longer.
	Stands time.Duration `json:"stands,omitempty"`
	// Quorum is what the observers make of it together, Needed how many of Observers must say healthy.
	Quorum    bool `json:"quorum"`
	Needed    int  `json:"needed,omitempty"`
	Observers int  `json:"observers"`
	// Override is what lies over what is observed: disabled, inverted, calculated from others; empty: nothing.
	Override string `json:"override,omitempty"`
	// Local is what the node that was asked has found itself; absent where it does not look.
	Local *HealthView `json:"local,omitempty"`
	// LastFailure is the reason of the newest failure that any observer tells of, even where it turned nothing.
	LastFailure   string       `json:"lastFailure,omitempty"`
	LastFailureAt time.Time    `json:"lastFailureAt,omitzero"`
	Views         []HealthView `json:"views"` // by node
	// Turns are the last ones, newest first. Only of a key that is asked for by itself.
	Turns []event.Event `json:"turns,omitempty"`
}

// HealthView is what one observer says.
type HealthView struct {
	Node    string    `json:"node"`
	Healthy bool      `json:"healthy"`
	Reason  string    `json:"reason,omitempty"`
	Since   time.Time `json:"since,omitzero"`
}

// HealthQuery says which verdicts are asked for: those whose key, or the name in it, begins with Name; empty: all.
type HealthQuery struct{ Name string }

// Event is one thing that turned, and by what.
type Event = event.Event

// EventList is a part of a node's timeline, oldest first.
type EventList struct {
	Node   string  `json:"node"`
	Events []Event `json:"events"`
	// Lost is how many events before these are not among them, though they came after the one asked for.
	Lost uint64 `json:"lost,omitempty"`
}

// EventQuery asks for what came after an event.
type EventQuery struct {
	After uint64        // the ID of an event; 0: the newest are asked for
	Limit int           // 1 to MaxEvents
	Wait  time.Duration // how long to wait for an event, where there is none yet
	// Subject asks for those of one thing and of what is below it, such as accelerator/game; "": all.
	Subject string
}

// Scopes of a drain.
const (
	ScopeNode   = "node"
	ScopePOP    = "pop"
	ScopeRegion = "region"
)

// PurgeRequest asks that objects be forgotten by all caches (CloudFront CreateInvalidation).
type PurgeRequest struct {
	ID           string   `json:"id,omitempty"` // makes a repeated request harmless; chosen by the client
	Distribution string   `json:"distribution"`
	Paths        []string `json:"paths"`          // begin with /, * only at the end; or # and a cache tag
	Host         string   `json:"host,omitempty"` // only what is kept for this host
	Soft         bool     `json:"soft,omitempty"` // stale from then on, where else it is forgotten
}

// BlockRequest asks that clients be refused, or be so no more.
type BlockRequest struct {
	ID     string         `json:"id,omitempty"`
	CIDRs  []netip.Prefix `json:"cidrs"`
	For    Duration       `json:"for,omitempty"` // absent: until it is undone
	Reason string         `json:"reason,omitempty"`
	Force  bool           `json:"force,omitempty"` // also everybody: 0.0.0.0/0 and ::/0
}

// DrainRequest asks that nothing new be sent somewhere, or that it be so again.
type DrainRequest struct {
	ID     string   `json:"id,omitempty"`
	Scope  string   `json:"scope"` // node, pop or region
	Name   string   `json:"name"`
	For    Duration `json:"for,omitempty"` // absent: until it is undone
	Reason string   `json:"reason,omitempty"`
}

// OrderResponse is the receipt of an order: what was agreed, and who has done it.
type OrderResponse struct {
	ID    string `json:"id"`
	Epoch uint64 `json:"epoch"` // the revision of the cluster's own records that has it
	// Agreed is how long it took until the order was agreed, in nanoseconds, from when it was asked for; in effect it was
	// on the nodes before, as Acks tell.
	Agreed time.Duration `json:"agreed"`
	Acks   []OrderAck    `json:"acks"` // by node, this one included
	// Warning is what whoever orders should know.
	Warning string `json:"warning,omitempty"`
}

// OrderAck is one node's answer: it has taken effect there.
type OrderAck struct {
	Node  string        `json:"node"`
	After time.Duration `json:"after,omitempty"` // in nanoseconds
	// Error is why there was no answer. The node does it when it hears of it; where it has missed one, its cache asks the
	// origin before it serves what it kept, until then.
	Error string `json:"error,omitempty"`
}

// OrderList is what is ordered now.
type OrderList struct {
	Epoch  uint64       `json:"epoch"`            // the newest order that this node knows to be agreed
	Fenced bool         `json:"fenced,omitempty"` // it has heard of newer ones
	Behind []NodeBehind `json:"behind"`           // live nodes that have not said yet that they have all orders up to Epoch, by name
	Drains []DrainInfo  `json:"drains"`
	Blocks []BlockInfo  `json:"blocks"`
	Purges []PurgeInfo  `json:"purges"` // the last ones, newest first
}

// NodeBehind is a live node and the newest order that it says it has. It has all before that.
type NodeBehind struct {
	Node  string `json:"node"`
	Epoch uint64 `json:"epoch"`
}

// DrainInfo is a drain that is in force.
type DrainInfo struct {
	Scope  string    `json:"scope"`
	Name   string    `json:"name"`
	Since  time.Time `json:"since"`
	Until  time.Time `json:"until,omitzero"`
	Author string    `json:"author,omitempty"`
	Reason string    `json:"reason,omitempty"`
}

// BlockInfo is one range of clients that is refused.
type BlockInfo struct {
	CIDR   netip.Prefix `json:"cidr"`
	Since  time.Time    `json:"since"`
	Until  time.Time    `json:"until,omitzero"`
	Author string       `json:"author,omitempty"`
	Reason string       `json:"reason,omitempty"`
}

// PurgeInfo is a purge of the past.
type PurgeInfo struct {
	ID           string    `json:"id"`
	Epoch        uint64    `json:"epoch"`
	Distribution string    `json:"distribution"`
	Paths        []string  `json:"paths"`
	Host         string    `json:"host,omitempty"`
	Soft         bool      `json:"soft,omitempty"`
	Time         time.Time `json:"time"`
	Author       string    `json:"author,omitempty"`
}

// NodeOrder is an order on its way to the leader, as a node encodes it.
type NodeOrder struct {
	Order []byte `json:"order"`
}

// NodeUpdate is an update of a zone by a message of the DNS (RFC 2136), on its way to the leader.
type NodeUpdate struct {
	Message []byte `json:"message"` // as it came, signature and all
	Client  string `json:"client"`  // where it came from
}

// UpdateResponse is what became of one.
type UpdateResponse struct {
	Rcode    int    `json:"rcode"`              // of the response (RFC 2136 section 2.2)
	Why      string `json:"why,omitempty"`      // more about a refusal
	Revision uint64 `json:"revision,omitempty"` // at which it is in effect
}

// Distance is an estimate of a round trip between two nodes.
type Distance struct {
	From string        `json:"from"`
	To   string        `json:"to"`
	RTT  time.Duration `json:"rtt"` // in nanoseconds
	// By is what it rests on: measured, region (measured between others there), coordinates.
	By string `json:"by"`
}

// DistanceList is the estimates from one node to all others, by name.
type DistanceList struct {
	From      string     `json:"from"`
	Distances []Distance `json:"distances"`
}

// ZoneList is the secondary zones as one node sees them.
type ZoneList struct {
	Node  string `json:"node"`
	Zones []Zone `json:"zones"`
}

// Zone is a secondary zone, and what the live nodes that answer names have of it.
type Zone struct {
	Name      string           `json:"name"`
	Primaries []netip.AddrPort `json:"primaries"`
	Copies    []ZoneCopy       `json:"copies"`
}

// ZoneCopy is what one node has of a zone.
type ZoneCopy struct {
	Node      string    `json:"node"`
	Serial    *uint32   `json:"serial,omitempty"`   // nothing: it has none, and answers SERVFAIL
	Confirmed time.Time `json:"confirmed,omitzero"` // when a primary was last known to have nothing newer
	Problem   string    `json:"problem,omitempty"`  // why none was when it was asked last
	Asks      bool      `json:"asks,omitempty"`     // the node that was asked, of itself: it is chosen to ask the primaries
	Expires   time.Time `json:"expires,omitzero"`   // the same: when it has none any more, unless it is confirmed
	Next      time.Time `json:"next,omitzero"`      // the same: when it asks the primaries, unless it hears of others before
}

// AnycastList is which addresses a node has routers lead to it, why, and to which routers it says so.
type AnycastList struct {
	Node     string         `json:"node"`
	Routes   []AnycastRoute `json:"routes"`
	Lines    []string       `json:"lines"` // why these and no others
	Sessions []BGPSession   `json:"sessions"`
}

// AnycastRoute is one address, as a prefix, that a node announces.
type AnycastRoute struct {
	Prefix           netip.Prefix `json:"prefix"`
	GracefulShutdown bool         `json:"gracefulShutdown,omitempty"` // others are to be preferred (RFC 8326)
}

// BGPSession is what there is between a node and one router.
type BGPSession struct {
	Neighbor  netip.Addr `json:"neighbor"`
	AS        uint32     `json:"as"`
	State     string     `json:"state"` // idle, connect, opensent, openconfirm, established (RFC 4271)
	Since     time.Time  `json:"since"`
	Sent      int        `json:"sent"`             // prefixes that it was told
	Unsent    int        `json:"unsent,omitempty"` // that it can't be told: of a family that it does not take
	LastError string     `json:"lastError,omitempty"`
}

// AcceleratorQuery says of what the state is asked for.
type AcceleratorQuery struct {
	Name string
	Node string // whose flows; "": those of all nodes
	Top  int    // flows, 0 to MaxTopFlows
}

// FlowCounts is how many flows there are now, and what they have carried so far.
type FlowCounts struct {
	Flows    int   `json:"flows"`
	BytesIn  int64 `json:"bytesIn"` // from clients
	BytesOut int64 `json:"bytesOut"`
}

// AcceleratorStatus is what goes on at an accelerator: on all nodes together, or on one.
type AcceleratorStatus struct {
	Node    string `json:"node"` // that was asked: health is as it sees it
	Name    string `json:"name"`
	Enabled bool   `json:"enabled"`
	FlowCounts
	Nodes     []AcceleratorNode     `json:"nodes"`
	Endpoints []AcceleratorEndpoint `json:"endpoints"`
	Paths     []AcceleratorPath     `json:"paths"`
	Top       []AcceleratorFlow     `json:"top"` // the flows that have carried most
}

// AcceleratorNode is a node that takes flows.
type AcceleratorNode struct {
	Name  string `json:"name"`
	POP   string `json:"pop"`
	Error string `json:"error,omitempty"` // why nothing is known of its flows
	// Doors says which of the accelerator's doors are closed there, and why; empty: none is.
	Doors string `json:"doors,omitempty"`
	FlowCounts
}

// AcceleratorEndpoint is an endpoint of a listener, with the flows of all nodes that were asked.
type AcceleratorEndpoint struct {
	Protocol string `json:"protocol"`
	Ports    string `json:"ports,omitempty"` // of the listener: 80,8000-8080; "": it has gone
	Region   string `json:"region"`
	Endpoint string `json:"endpoint"` // targetGroup/web, loadBalancer/web, or an address
	Weight   int    `json:"weight"`
	// TrafficDial is its group's, percent.
	TrafficDial float64 `json:"trafficDial"`
	Healthy     bool    `json:"healthy"`
	// State is healthy, unhealthy, initial (nobody has looked yet) or unchecked (nobody looks); "": the node that was asked does not tell.
	State string `json:"state,omitempty"`
	// Reason is why it is not healthy, or why its region takes no flows.
	Reason string `json:"reason,omitempty"`
	Gone   bool   `json:"gone,omitempty"` // it is in the spec no more
	FlowCounts
}

// AcceleratorPath is a way that flows take, from the node that took them to the one that dials their endpoints.
type AcceleratorPath struct {
	From   string        `json:"from"`
	To     string        `json:"to"`
	By     string        `json:"by,omitempty"`  // the node in between
	Region string        `json:"region"`        // of To
	RTT    time.Duration `json:"rtt,omitempty"` // over the backbone, in nanoseconds; 0: not known, or within one node
	// Loss is the share of the packets sent to the first node of the path that were lost of late, 0 to 1, and Repaired says that parity makes losses good there.
	Loss     float64 `json:"loss,omitempty"`
	Repaired bool    `json:"repaired,omitempty"`
	// Carried is the most that arrived there in a second of the last ten minutes, bits a second, by QUIC or TCP, whichever is more.
	Carried float64 `json:"carried,omitempty"`
	FlowCounts
}

// AcceleratorFlow is one flow.
type AcceleratorFlow struct {
	Node     string         `json:"node"` // that took it
	Client   netip.AddrPort `json:"client,omitzero"`
	Local    netip.AddrPort `json:"local"` // where it arrived
	Protocol string         `json:"protocol"`
	Region   string         `json:"region"` // where it ends
	Endpoint string         `json:"endpoint"`
	Target   netip.AddrPort `json:"target,omitzero"` // where it ends; left out where its node does not tell
	To       string         `json:"to"`
	By       string         `json:"by,omitempty"`
	Moves    int            `json:"moves,omitempty"` // ways that were lost under it
	Began    time.Time      `json:"began"`
	BytesIn  int64          `json:"bytesIn"`
	BytesOut int64          `json:"bytesOut"`
	// RTT is the client's round trip, in nanoseconds, and Retransmitted the segments that were sent to it again: of TCP, where the kernel tells.
	RTT           time.Duration `json:"rtt,omitempty"`
	Retransmitted *uint64       `json:"retransmitted,omitempty"`
}

// PortMappingList is where the ports of a custom routing accelerator lead, by listener and port (Global Accelerator,
// ListCustomRoutingPortMappings).
type PortMappingList struct {
	Name        string        `json:"name"`
	Revision    uint64        `json:"revision"` // of the spec that says so
	IPAddresses []netip.Addr  `json:"ipAddresses"`
	Mappings    []PortMapping `json:"portMappings"`
}

// PortMapping is where one port leads.
type PortMapping struct {
	AcceleratorPort          int            `json:"acceleratorPort"`
	Protocol                 string         `json:"protocol"`
	EndpointGroupRegion      string         `json:"endpointGroupRegion"`
	Subnet                   netip.Prefix   `json:"subnet"`
	DestinationSocketAddress netip.AddrPort `json:"destinationSocketAddress"`
	DestinationTrafficState  string         `json:"destinationTrafficState"` // ALLOW or DENY
}

// States of traffic to a destination.
const (
	TrafficAllowed = "ALLOW"
	TrafficDenied  = "DENY"
)

// PortMappingsQuery says which mappings are asked for.
type PortMappingsQuery struct {
	Name        string
	Destination string // an address, or an address and port; "": all
}

// MaxTopFlows is how many flows an answer has at most.
const MaxTopFlows = 1000

// ExplainRequest asks why a client would be served as it would be.
type ExplainRequest struct {
	What   string `json:"what"`             // dns, http, tcp or udp
	Target string `json:"target"`           // a name, a URL, or an address and port
	Type   string `json:"type,omitempty"`   // of a DNS question; default A
	From   string `json:"from,omitempty"`   // the client's address; of a DNS query with a subnet, the resolver's
	Subnet string `json:"subnet,omitempty"` // EDNS client subnet of a DNS query, a CIDR
	Method string `json:"method,omitempty"` // of a request; default GET
}

// ExplainResponse is the reasons of the decision, from the functions that the data path calls.
type ExplainResponse struct {
	Node   string       `json:"node"` // whose view it was decided by
	Lines  []trace.Line `json:"lines"`
	Answer string       `json:"answer"`
}

// Recorded is the answer to a change of the cluster's own records.
type Recorded struct {
	Own     uint64 `json:"own"`               // the revision of the records that has it
	Message string `json:"message,omitempty"` // what follows, for people
}

// NodeList is every node that the cluster has admitted, live or not.
type NodeList struct {
	Own     uint64       `json:"own"`
	Nodes   []NodeRecord `json:"nodes"`
	Revoked []Revocation `json:"revoked,omitempty"`
}

// NodeRecord is one admitted node.
type NodeRecord struct {
	Name     string    `json:"name"`
	Region   string    `json:"region"`
	POP      string    `json:"pop"`
	Roles    []string  `json:"roles"`
	Admitted time.Time `json:"admitted,omitzero"`
	Live     bool      `json:"live"`
	Vote     bool      `json:"vote"`
}

// Revocation shuts out the certificates of a name that were issued at an own revision or before it.
type Revocation struct {
	Name  string `json:"name"`
	Epoch uint64 `json:"epoch"`
}

// TokenRequest asks for a join token.
type TokenRequest struct {
	Roles []string `json:"roles,omitempty"` // that a node may join with; none: all
	TTL   Duration `json:"ttl,omitempty"`   // 1m to 720h; default 1h
	Uses  int      `json:"uses,omitempty"`  // 1 to 1000; default 1
}

// TokenResponse is a new join token. Its secret is shown this once and kept nowhere.
type TokenResponse struct {
	TokenInfo
	Token string `json:"token"`
}

// TokenInfo is what is known of a join token.
type TokenInfo struct {
	ID      string    `json:"id"`
	Roles   []string  `json:"roles"`
	Uses    int       `json:"uses"` // that it was made for
	Used    int       `json:"used"`
	Author  string    `json:"author,omitempty"`
	Created time.Time `json:"created,omitzero"`
	Expires time.Time `json:"expires"`
}

// TokenList is the join tokens that are not used up and not expired.
type TokenList struct {
	Tokens []TokenInfo `json:"tokens"`
}

// AccessRequest asks for an access token.
type AccessRequest struct {
	Name      string   `json:"name"`                // who it is for: what the history calls its holder
	Roles     []string `json:"roles"`               // read, operate, purge, admin
	Resources []string `json:"resources,omitempty"` // globs of Kind/name that it is limited to; none: all
	TTL       Duration `json:"ttl,omitempty"`
}

// AccessResponse is a new access token. Its secret is shown this once and kept nowhere.
type AccessResponse struct {
	AccessInfo
	Token string `json:"token"`
}

// AccessInfo is what is known of an access token.
type AccessInfo struct {
	Name      string    `json:"name"`
	Roles     []string  `json:"roles"`
	Resources []string  `json:"resources,omitempty"`
	Author    string    `json:"author,omitempty"`
	Created   time.Time `json:"created,omitzero"`
	Expires   time.Time `json:"expires,omitzero"` // absent: never
}

// AccessList is the access tokens that are not expired.
type AccessList struct {
	Access []AccessInfo `json:"access"`
}

// Keys are the cluster's keys and how far their rotation is, without any secret.
type Keys struct {
	Authorities []KeyInfo `json:"authorities"`
	Gossip      []KeyInfo `json:"gossip"`
	Tickets     []KeyInfo `json:"tickets,omitempty"` // of TLS session tickets, three of them but at first
	// Waiting says what the next step of a rotation waits for, for people.
	Waiting string `json:"waiting,omitempty"`
}

// KeyInfo is one key.
type KeyInfo struct {
	ID      string    `json:"id"`    // of an authority the hash of its public key, in hex
	Stage   string    `json:"stage"` // introduced, used or retired
	Created time.Time `json:"created,omitzero"`
	Expires time.Time `json:"expires,omitzero"`
	PEM     string    `json:"pem,omitempty"` // of an authority its certificate, by which clients know the nodes
}

// RotateRequest begins a rotation.
type RotateRequest struct {
	What string `json:"what"` // authority or gossip
}

// RestoreResponse is what the cluster is at after a snapshot was restored.
type RestoreResponse struct {
	Revision uint64 `json:"revision"`
	Own      uint64 `json:"own"`
}

// RenewRequest is what a node asks a voter: a new certificate for the name by which it is connected.
type RenewRequest struct {
	CSR   []byte         `json:"csr"` // PKCS #10, DER
	Claim identity.Claim `json:"claim"`
	// Own is the revision of the cluster's own records that the node goes by. A voter that has not got as far refuses with
	// 503: it may not know yet by which authority to certify.
	Own uint64 `json:"own,omitempty"`
}
