package api

import (
	"context"
	"io"
	"net/http"

	"github.com/perigee-net/perigee/cluster/identity"
)

// Backend is what the API asks of a node. Errors that are *Error are sent as they are, ErrNotLeader leads to Forward,
// ErrBusy to 429; others are 500. What is given as by is who asks and what the history is to call it; that it has the
// route's role was seen to. All fields are needed but NodeAccelerator, Order, Update, Join and Renew, which only the control port's server asks for.
type Backend struct {
	// Authenticate says whose an access token is; its error is told to whoever showed the token.
	Authenticate func(bearer string) (Principal, error)
	// NodeMay says what those may who ask at the unix socket of another node: "" nothing. That node vouches for who they are.
	NodeMay func(peer string) Role

	// Apply and Rollback call Touch before anything is done.
	Apply    func(ctx context.Context, by Principal, req ApplyRequest) (ApplyResponse, error)
	Rollback func(ctx context.Context, by Principal, req RollbackRequest) (ApplyResponse, error)
	Diff     func(ctx context.Context, by Principal, req ApplyRequest) (ApplyResponse, error)

	// What the principal may not touch is left out of these answers afterwards.
	Resources   func(context.Context, ResourcesQuery) (ResourceList, error)
	History     func(HistoryQuery) (History, error)
	Revision    func(revision uint64) (RevisionDetail, error)
	ResourcesAt func(revision uint64) (ResourceList, error)
	// Wait returns when every live node runs the revision or has refused it, or else, without an error, what is when
	// the context ends.
	Wait func(ctx context.Context, revision uint64) (WaitResponse, error)

	Status func() Status
	Health func(HealthQuery) []HealthEntry
	// Distances are the estimates from a node; "": from this one.
	Distances func(from string) (DistanceList, error)
	// Anycast is what this node announces.
	Anycast func() AnycastList
	// Zones is the secondary zones.
	Zones func() ZoneList
	// Accelerator is what goes on at an accelerator, on the nodes of the query; NodeAccelerator is that of this node alone, for other nodes.
	Accelerator     func(context.Context, AcceleratorQuery) (AcceleratorStatus, error)
	NodeAccelerator func(AcceleratorQuery) (AcceleratorStatus, error)
	PortMappings    func(PortMappingsQuery) (PortMappingList, error)
	// Events returns at least one, or else none when the context or the query's time ends.
	Events  func(context.Context, EventQuery) (EventList, error)
	Explain func(ExplainRequest) (ExplainResponse, error)
	// Metrics writes those of the whole node in Prometheus's text form.
	Metrics func(io.Writer) error
	// Schema is the JSON Schema of the spec.
	Schema func() []byte

	Nodes  func() (NodeList, error)
	Revoke func(ctx context.Context, by Principal, node string) (Recorded, error)
	Forget func(ctx context.Context, by Principal, node string) (Recorded, error)

	CreateToken  func(ctx context.Context, by Principal, req TokenRequest) (TokenResponse, error)
	Tokens       func() (TokenList, error)
	DeleteToken  func(ctx context.Context, by Principal, id string) (Recorded, error)
	CreateAccess func(ctx context.Context, by Principal, req AccessRequest) (AccessResponse, error)
	Access       func() (AccessList, error)
	DeleteAccess func(ctx context.Context, by Principal, name string) (Recorded, error)

	Keys   func() (Keys, error)
	Rotate func(ctx context.Context, by Principal, req RotateRequest) (Recorded, error)

	// The orders take effect everywhere at once, and are agreed. They return when all live nodes have acknowledged, or with
	// what is when the context ends or a second has passed.
	Purge   func(ctx context.Context, by Principal, req PurgeRequest) (OrderResponse, error)
	Block   func(ctx context.Context, by Principal, req BlockRequest) (OrderResponse, error)
	Unblock func(ctx context.Context, by Principal, req BlockRequest) (OrderResponse, error)
	Drain   func(ctx context.Context, by Principal, req DrainRequest) (OrderResponse, error)
	Undrain func(ctx context.Context, by Principal, req DrainRequest) (OrderResponse, error)
	Orders  func(after uint64) OrderList

	// Snapshot writes all that is agreed. An error before the first byte is answered as such, one after it cuts the stream.
	Snapshot func(ctx context.Context, w io.Writer) error
	// Restore replaces all that is agreed. It returns ErrNotLeader before it reads.
	Restore func(ctx context.Context, by Principal, r io.Reader) (RestoreResponse, error)

	// Order, Update, Join and Renew answer another node, which the control port has named.
	Order  func(ctx context.Context, peer string, req NodeOrder) (Recorded, error)
	Update func(ctx context.Context, peer string, req NodeUpdate) (UpdateResponse, error)
	Join   func(ctx context.Context, peer string, req identity.JoinRequest) (identity.JoinAnswer, error)
	Renew  func(ctx context.Context, peer string, req RenewRequest) (identity.JoinAnswer, error)

	// Forward sends the request to the leader by ForwardRequest and copies its answer by CopyAnswer. Where that fails it returns
	// why, and has answered nothing: ErrIsLeader or ErrNoLeader. Told to wait, it waits for a leader to be elected,
	// and may send the request again where an answer is lost. A nil body is r's own, which can be sent once.
	Forward func(w http.ResponseWriter, r *http.Request, body []byte, wait bool) error
}
