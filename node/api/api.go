// Package api is how people and programs talk to a node: HTTP with JSON, on the API address and on a unix
// socket in the data folder. It has the wire types, the server and the client, so that the tool and the
// node cannot disagree. It decides nothing: a Backend does, and a node whose answer needs the leader
// forwards the request there.
//
// The API has no authentication of its own yet: a node binds it to loopback unless told otherwise.
package api

import (
	"time"

	"github.com/perigee-net/perigee/cluster/trace"
	"github.com/perigee-net/perigee/cluster/view"
)

// File is one file of YAML documents, by the name that errors are to mention.
type File struct {
	Name string `json:"name"`
	Data string `json:"data"`
}

// Ref names a resource.
type Ref struct {
	Kind string `json:"kind"`
	Name string `json:"name"`
}

// ApplyRequest asks for one change: all documents of all files and all deletions, or nothing.
type ApplyRequest struct {
	// ID makes a repeated request harmless: the cluster applies it once. Chosen by the client.
	ID string `json:"id,omitempty"`
	// Expect is the revision that the change must follow; nil takes any.
	Expect *uint64 `json:"expect,omitempty"`
	Files  []File  `json:"files,omitempty"`
	Delete []Ref   `json:"delete,omitempty"`
	// DryRun validates and says what would change.
	DryRun bool   `json:"dryRun,omitempty"`
	Author string `json:"author,omitempty"`
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

// Resource is one resource, as it was written and as it is understood.
type Resource struct {
	Kind     string `json:"kind"`
	Name     string `json:"name"`
	Revision uint64 `json:"revision"` // of its last change
	YAML     string `json:"yaml"`
	Spec     any    `json:"spec,omitempty"` // with defaults
}

// ResourceList is the resources of one kind, or of all.
type ResourceList struct {
	Revision  uint64     `json:"revision"`
	Resources []Resource `json:"resources"`
}

// Status is the network as one node sees it.
type Status struct {
	Node     string `json:"node"`
	Cluster  string `json:"cluster"`
	Leader   string `json:"leader"`   // "" while there is none
	Revision uint64 `json:"revision"` // the newest this node has
	Running  uint64 `json:"running"`  // the revision its data plane runs
	Refused  string `json:"refused,omitempty"`
	// Voters is how many vote in Raft, Missing those of them that are not live: a majority must be.
	Voters  int            `json:"voters"`
	Missing []string       `json:"missing,omitempty"`
	Members []MemberStatus `json:"members"`
}

// MemberStatus is one live node.
type MemberStatus struct {
	view.Member
	Running uint64        `json:"running"`           // the revision its data plane runs
	Refused string        `json:"refused,omitempty"` // why it does not run a newer one
	Doors   string        `json:"doors,omitempty"`   // which of its doors stay closed, and why
	Vote    bool          `json:"vote"`              // it votes in Raft
	RTT     time.Duration `json:"rtt,omitempty"`     // measured from the node that was asked
	Up      bool          `json:"up"`                // the backbone of the node that was asked reaches it
}

// HealthEntry is the verdict on one key, and who says what.
type HealthEntry struct {
	Key     string            `json:"key"`
	Healthy bool              `json:"healthy"`
	Reason  string            `json:"reason,omitempty"`
	Since   time.Time         `json:"since"`
	Views   map[string]string `json:"views"` // node → "healthy", or why not
}

// ExplainRequest asks why a client would be served as it would be.
type ExplainRequest struct {
	What   string `json:"what"`             // dns, http or tcp
	Target string `json:"target"`           // a name, a URL, or an address and port
	Type   string `json:"type,omitempty"`   // of a DNS question; default A
	From   string `json:"from,omitempty"`   // the client's address
	Method string `json:"method,omitempty"` // of a request; default GET
}

// ExplainResponse is the reasons of the decision, from the functions that the data path calls.
type ExplainResponse struct {
	Node   string       `json:"node"` // whose view it was decided by
	Lines  []trace.Line `json:"lines"`
	Answer string       `json:"answer"`
}

// EnlistRequest is what a node that has joined asks the leader: to be a member of Raft.
type EnlistRequest struct {
	Name    string `json:"name"`
	Control string `json:"control"`
	Voter   bool   `json:"voter"`
}

// Error is every refusal of the API.
type Error struct {
	Status  int      `json:"status"`
	Message string   `json:"message"`
	Faults  []string `json:"faults,omitempty"` // of a spec: file, line, resource, field, what
}

func (e *Error) Error() string {
	if len(e.Faults) == 0 {
		return e.Message
	}
	text := e.Message
	for _, f := range e.Faults {
		text += "\n" + f
	}
	return text
}
