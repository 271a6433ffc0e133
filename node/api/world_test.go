package api

import (
	"context"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/perigee-net/perigee/cluster/identity"
	"github.com/perigee-net/perigee/cluster/trace"
	"github.com/perigee-net/perigee/cluster/view"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// principals are those whose token is their name.
var principals = map[string]Principal{
	"reader":   {Name: "reader", Roles: []Role{Read}},
	"operator": {Name: "operator", Roles: []Role{Operate}},
	"purger":   {Name: "purger", Roles: []Role{Purge}},
	"admin":    {Name: "admin", Roles: []Role{Admin}},
	"team":     {Name: "team", Roles: []Role{Admin}, Resources: []string{"LoadBalancer/team-*", "Distribution/team-*", "Node/team-*"}},
	"none":     {Name: "none"},
}

var then = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// backendOf answers everything with something.
func backendOf() Backend {
	turned := Event{ID: 4, Node: "a", Time: then, Kind: "health", Subject: "k", Text: "it is healthy again", Causes: []uint64{3}}
	receipt := OrderResponse{ID: "1", Epoch: 3, Agreed: time.Millisecond, Acks: []OrderAck{{Node: "a"}, {Node: "b", Error: "no answer yet"}}}
	changes := []Change{{Op: "updated", Kind: "LoadBalancer", Name: "team-web", Fields: []string{"a: 1 → 2"}}}
	list := ResourceList{Revision: 7, Resources: []Resource{
		{Kind: "LoadBalancer", Name: "team-web", Revision: 3, YAML: "kind: LoadBalancer\n", Spec: map[string]any{"name": "team-web"}},
		{Kind: "TargetGroup", Name: "web", Revision: 4, YAML: "kind: TargetGroup\n"},
	}}
	record := Record{Revision: 7, Time: then, Author: "admin", Note: "why", Put: []Ref{{"LoadBalancer", "team-web"}}, Delete: []Ref{{"TargetGroup", "old"}}}
	recorded := func(context.Context, Principal, string) (Recorded, error) {
		return Recorded{Own: 4, Message: "done"}, nil
	}
	joined := identity.JoinAnswer{Certificate: []byte{1}, Authorities: [][]byte{{2}}, ClusterKey: []byte{3}}
	return Backend{
		Authenticate: func(bearer string) (Principal, error) {
			if p, ok := principals[bearer]; ok {
				return p, nil
			}
			return Principal{}, errors.New("it is not known")
		},
		NodeMay: func(peer string) Role {
			return map[string]Role{"voter": Admin, "edge": Read}[peer]
		},
		Apply: func(_ context.Context, by Principal, _ ApplyRequest) (ApplyResponse, error) {
			return ApplyResponse{Revision: 8, Changes: changes}, Touch(by, changes)
		},
		Rollback: func(_ context.Context, by Principal, _ RollbackRequest) (ApplyResponse, error) {
			return ApplyResponse{Revision: 9}, nil
		},
		Diff: func(context.Context, Principal, ApplyRequest) (ApplyResponse, error) {
			return ApplyResponse{Revision: 8, Changes: changes}, nil
		},
		Resources: func(_ context.Context, q ResourcesQuery) (ResourceList, error) {
			some := ResourceList{Revision: list.Revision}
			for _, r := range list.Resources {
				if (q.Kind == "" || q.Kind == r.Kind) && (q.Name == "" || q.Name == r.Name) {
					some.Resources = append(some.Resources, r)
				}
			}
			return some, nil
		},
		History: func(HistoryQuery) (History, error) {
			return History{Revision: 7, Records: []Record{record, {Revision: 6, Time: then, Author: "admin", Put: []Ref{{"TargetGroup", "web"}}}}}, nil
		},
		Revision: func(revision uint64) (RevisionDetail, error) {
			return RevisionDetail{Record: record, Changes: append(slices.Clone(changes), Change{Op: "deleted", Kind: "TargetGroup", Name: "old"})}, nil
		},
		ResourcesAt: func(revision uint64) (ResourceList, error) {
			at := list
			at.Revision = revision
			return at, nil
		},
		Wait: func(ctx context.Context, revision uint64) (WaitResponse, error) {
			return WaitResponse{Revision: revision, Nodes: []NodeRunning{{"a", revision, ""}, {"b", 1, "no room"}}}, nil
		},
		Status: func() Status {
			return Status{Node: "a", Cluster: "c", Leader: "a", Revision: 7, Running: 7, Own: 3, Voters: 1, Members: []MemberStatus{
				{Member: view.Member{Name: "a", Region: "r", POP: "p", Control: netip.MustParseAddrPort("10.0.0.1:7947")}, RTT: time.Millisecond}}}
		},
		Health: func(q HealthQuery) []HealthEntry {
			views := []HealthView{{Node: "a", Healthy: true, Since: then}}
			return []HealthEntry{
				{Key: "k", Healthy: true, Since: then, Views: views, Local: &views[0], Turns: []Event{turned}},
				{Key: "l", Since: then, Override: "disabled", LastFailure: q.Name, Views: []HealthView{}},
			}
		},
		Distances: func(from string) (DistanceList, error) {
			return DistanceList{From: from, Distances: []Distance{{From: from, To: "b", RTT: time.Millisecond, By: "measured"}}}, nil
		},
		Anycast: func() AnycastList {
			return AnycastList{Node: "a", Routes: []AnycastRoute{{Prefix: netip.MustParsePrefix("198.51.100.1/32"), GracefulShutdown: true}}, Lines: []string{"why"},
				Sessions: []BGPSession{{Neighbor: netip.MustParseAddr("10.0.0.1"), AS: 64500, State: "established", Since: then, Sent: 1}}}
		},
		Zones: func() ZoneList {
			serial := uint32(7)
			return ZoneList{Node: "a", Zones: []Zone{{Name: "z", Primaries: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:53")}, Copies: []ZoneCopy{
				{Node: "a", Serial: &serial, Confirmed: then, Asks: true, Expires: then, Next: then}, {Node: "b", Problem: "why"}}}}}
		},
		Accelerator: func(_ context.Context, q AcceleratorQuery) (AcceleratorStatus, error) { return flowing(q), nil },
		PortMappings: func(q PortMappingsQuery) (PortMappingList, error) {
			return PortMappingList{Name: q.Name, Revision: 7, IPAddresses: []netip.Addr{netip.MustParseAddr("198.51.100.1")}, Mappings: []PortMapping{{AcceleratorPort: 1, Protocol: "TCP",
				EndpointGroupRegion: "r", Subnet: netip.MustParsePrefix("10.0.0.0/28"), DestinationSocketAddress: netip.MustParseAddrPort("10.0.0.1:80"), DestinationTrafficState: TrafficDenied}}}, nil
		},
		NodeAccelerator: func(q AcceleratorQuery) (AcceleratorStatus, error) { return flowing(q), nil },
		Events: func(_ context.Context, q EventQuery) (EventList, error) {
			return EventList{Node: "a", Events: []Event{turned}, Lost: q.After}, nil
		},
		Purge:   func(context.Context, Principal, PurgeRequest) (OrderResponse, error) { return receipt, nil },
		Block:   func(context.Context, Principal, BlockRequest) (OrderResponse, error) { return receipt, nil },
		Unblock: func(context.Context, Principal, BlockRequest) (OrderResponse, error) { return receipt, nil },
		Drain:   func(context.Context, Principal, DrainRequest) (OrderResponse, error) { return receipt, nil },
		Undrain: func(context.Context, Principal, DrainRequest) (OrderResponse, error) { return receipt, nil },
		Orders: func(uint64) OrderList {
			return OrderList{
				Epoch: 3, Drains: []DrainInfo{{Scope: ScopePOP, Name: "icn1", Since: then}},
				Blocks: []BlockInfo{{CIDR: netip.MustParsePrefix("192.0.2.0/24"), Since: then, Until: then}},
				Purges: []PurgeInfo{{ID: "1", Epoch: 3, Distribution: "shop", Paths: []string{"/*"}, Time: then}},
			}
		},
		Order: func(context.Context, string, NodeOrder) (Recorded, error) { return Recorded{Own: 3}, nil },
		Update: func(_ context.Context, _ string, req NodeUpdate) (UpdateResponse, error) {
			return UpdateResponse{Why: req.Client, Revision: 3}, nil
		},
		Explain: func(ExplainRequest) (ExplainResponse, error) {
			return ExplainResponse{Node: "a", Lines: []trace.Line{{Depth: 1, Text: "so"}}, Answer: "10.0.0.1"}, nil
		},
		Metrics: func(w io.Writer) error {
			_, err := io.WriteString(w, "# TYPE perigee_cache_bytes gauge\nperigee_cache_bytes 9\n")
			return err
		},
		Schema: func() []byte { return []byte(`{"type":"object"}`) },
		Nodes: func() (NodeList, error) {
			return NodeList{Own: 3, Nodes: []NodeRecord{{Name: "a", Region: "r", POP: "p", Live: true}}, Revoked: []Revocation{{"b", 2}}}, nil
		},
		Revoke: recorded, Forget: recorded, DeleteToken: recorded, DeleteAccess: recorded,
		CreateToken: func(context.Context, Principal, TokenRequest) (TokenResponse, error) {
			return TokenResponse{TokenInfo{ID: "1", Uses: 1, Expires: then}, "pgt2.x"}, nil
		},
		Tokens: func() (TokenList, error) {
			return TokenList{Tokens: []TokenInfo{{ID: "1", Roles: []string{"edge"}, Uses: 1, Expires: then}}}, nil
		},
		CreateAccess: func(context.Context, Principal, AccessRequest) (AccessResponse, error) {
			return AccessResponse{AccessInfo{Name: "ci", Roles: []string{"read"}}, "pga1.x"}, nil
		},
		Access: func() (AccessList, error) { return AccessList{}, nil },
		Keys: func() (Keys, error) {
			return Keys{Authorities: []KeyInfo{{ID: "ab", Stage: "used", Expires: then}}, Gossip: []KeyInfo{{ID: "1", Stage: "used"}}}, nil
		},
		Rotate: func(context.Context, Principal, RotateRequest) (Recorded, error) { return Recorded{Own: 5}, nil },
		Snapshot: func(_ context.Context, w io.Writer) error {
			_, err := io.WriteString(w, "all that is agreed")
			return err
		},
		Restore: func(_ context.Context, _ Principal, r io.Reader) (RestoreResponse, error) {
			_, err := io.Copy(io.Discard, r)
			return RestoreResponse{Revision: 10, Own: 6}, err
		},
		Join:    func(context.Context, string, identity.JoinRequest) (identity.JoinAnswer, error) { return joined, nil },
		Renew:   func(context.Context, string, RenewRequest) (identity.JoinAnswer, error) { return joined, nil },
		Forward: func(http.ResponseWriter, *http.Request, []byte, bool) error { return ErrNoLeader },
	}
}

// serverOf is a door whose tokens are the names of the principals.
func serverOf(b Backend) *Server { return NewServer(b, ByToken(b)) }

// asked is the answer of a server to one request, as someone.
func asked(s *Server, as, method, target, body string, header ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, target, strings.NewReader(body))
	if as != "" {
		r.Header.Set("Authorization", "Bearer "+as)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	return w
}

// clientOf serves a backend by loopback and returns the client of someone.
func clientOf(t *testing.T, b Backend, as string) *Client {
	h := httptest.NewServer(serverOf(b))
	t.Cleanup(h.Close)
	c, err := NewClient(h.URL, Options{Token: as})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func revision(n uint64) *uint64 { return &n }

// quiet is for servers whose clients fail on purpose.
func quiet() *log.Logger { return log.New(io.Discard, "", 0) }

func flowing(q AcceleratorQuery) AcceleratorStatus {
	counts, again := FlowCounts{Flows: 1, BytesIn: 2, BytesOut: 3}, uint64(4)
	return AcceleratorStatus{
		Node: "a", Name: q.Name, Enabled: true, FlowCounts: counts, Nodes: []AcceleratorNode{{Name: "a", POP: "p", FlowCounts: counts}, {Name: "b", POP: "p", Error: "it is away"}},
		Endpoints: []AcceleratorEndpoint{{Protocol: "TCP", Ports: "443", Region: "r", Endpoint: "targetGroup/web", Weight: 128, Healthy: true, FlowCounts: counts}},
		Paths:     []AcceleratorPath{{From: "a", To: "b", By: "c", Region: "r", RTT: time.Millisecond, FlowCounts: counts}},
		Top: []AcceleratorFlow{{Node: "a", Client: netip.MustParseAddrPort("192.0.2.1:5"), Local: netip.MustParseAddrPort("198.51.100.1:443"), Protocol: "TCP", Region: "r",
			Endpoint: "targetGroup/web", Target: netip.MustParseAddrPort("10.0.0.2:8443"), To: "b", By: "c", Began: time.Unix(1772352960, 0), BytesIn: int64(q.Top), RTT: time.Millisecond, Retransmitted: &again}},
	}
}
