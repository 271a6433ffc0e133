package api

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/perigee-net/perigee/cluster/identity"
)

// route is one thing that can be asked. The table of them is what the server serves and what the OpenAPI document says.
type route struct {
	method, path string
	role         Role    // that whoever asks needs
	nodes        bool    // instead: asked by nodes only, at the control port
	leader       bool    // may need the leader: then it is forwarded
	again        bool    // to send it twice is harmless
	match        bool    // may follow a revision, by If-Match
	stream       bool    // its body is not kept in memory
	most         int64   // bytes of its body; 0: it has none
	params       []param // in its path and query
	summary      string
	handler
}

// handler is what answers, with the types of what it takes and gives.
type handler struct {
	request, response reflect.Type // nil: none, or not JSON
	kind              string       // of an answer that is not JSON
	do                func(*call) (any, error)
}

// takes answers JSON with JSON.
func takes[Req, Res any](f func(*call, Req) (Res, error)) handler {
	return handler{request: reflect.TypeFor[Req](), response: reflect.TypeFor[Res](), do: func(c *call) (any, error) {
		var req Req
		// A node of a later release may say more than this one knows.
		if err := decode(c.body, &req, !c.route.nodes); err != nil {
			return nil, err
		}
		return f(c, req)
	}}
}

// gives answers with JSON.
func gives[Res any](f func(*call) (Res, error)) handler {
	return handler{response: reflect.TypeFor[Res](), do: func(c *call) (any, error) { return f(c) }}
}

// written is what a handler returns that has sent its answer.
type written struct{}

// writes answers with something else, by itself.
func writes(kind string, f func(*call) error) handler {
	return handler{kind: kind, do: func(c *call) (any, error) { return written{}, f(c) }}
}

// param is a part of a path or a query.
type param struct {
	name, in, about string
	schema          schema
}

func inPath(name, about string) param {
	return param{name: name, in: "path", about: about, schema: schema{"type": "string", "minLength": 1, "maxLength": maxName}}
}

func inQuery(name, about string, s schema) param {
	return param{name: name, in: "query", about: about, schema: s}
}

var (
	text   = schema{"type": "string", "maxLength": maxName}
	flag   = schema{"type": "boolean"}
	number = schema{"type": "integer", "format": "int64", "minimum": 0}
)

// routes is the table.
func routes() []route {
	revision := param{name: "rev", in: "path", about: "the revision", schema: number}
	node := inPath("name", "the node")
	top := inQuery("top", "so many flows, those that have carried most", schema{"type": "integer", "minimum": 0, "maximum": MaxTopFlows, "default": defaultTopFlows})
	return []route{
		{method: http.MethodPost, path: "/v1/apply", role: Operate, leader: true, match: true, most: MaxBody,
			summary: "Change the spec: all that is asked for, or nothing", handler: takes(apply)},
		{method: http.MethodPost, path: "/v1/diff", role: Read, most: MaxBody,
			summary: "Say what a change would do", handler: takes(diff)},
		{method: http.MethodPost, path: "/v1/rollback", role: Operate, leader: true, match: true, most: maxSmall,
			summary: "Make the spec be as it was at a revision, by a new revision", handler: takes(rollback)},
		{method: http.MethodGet, path: "/v1/resources", role: Read, leader: true, again: true, params: []param{
			inQuery("kind", "of one kind, in any spelling that apply takes", text), inQuery("name", "of this name", text),
			inQuery("fresh", "ask the leader, so that every change that was acknowledged before is in the answer", flag)},
			summary: "List resources", handler: gives(resources)},
		{method: http.MethodGet, path: "/v1/blocks", role: Read, params: []param{inQuery("kind", "of this kind", text), inQuery("name", "of this name", text)},
			summary: "Say of which blocks the document of a resource is made, so that a change of it need not send all", handler: gives(blocks)},
		{method: http.MethodGet, path: "/v1/history", role: Read, params: []param{
			inQuery("limit", "at most so many changes", schema{"type": "integer", "minimum": 1, "maximum": MaxHistory, "default": defaultHistory}),
			inQuery("own", "of the cluster's own records (nodes, tokens, keys), not of the spec", flag)},
			summary: "List the last changes, newest first", handler: gives(history)},
		{method: http.MethodGet, path: "/v1/revisions/{rev}", role: Read, leader: true, again: true, params: []param{revision},
			summary: "Show a change", handler: gives(revisionOf)},
		{method: http.MethodGet, path: "/v1/revisions/{rev}/resources", role: Read, leader: true, again: true, params: []param{revision},
			summary: "List the resources as they were", handler: gives(resourcesAt)},
		{method: http.MethodGet, path: "/v1/revisions/{rev}/wait", role: Read, params: []param{revision,
			inQuery("timeout", "such as 30s; default 1m, at most 5m", text)},
			summary: "Wait until every live node runs the revision or has refused it", handler: gives(wait)},

		{method: http.MethodGet, path: "/v1/status", role: Read, summary: "Show the network as this node sees it",
			handler: gives(func(c *call) (Status, error) { return c.server.backend.Status(), nil })},
		{method: http.MethodGet, path: "/v1/health", role: Read, params: []param{
			inQuery("name", "whose key, or the name in it, begins so; one alone comes with its last turns", text)},
			summary: "Show the verdicts on health as this node sees them", handler: gives(func(c *call) ([]HealthEntry, error) {
				return c.server.backend.Health(HealthQuery{Name: c.query.Get("name")}), nil
			})},
		{method: http.MethodGet, path: "/v1/distances", role: Read, params: []param{inQuery("from", "the node from which; default the one that is asked", text)},
			summary: "Estimate the round trips to all nodes", handler: gives(func(c *call) (DistanceList, error) {
				return c.server.backend.Distances(c.query.Get("from"))
			})},
		{method: http.MethodGet, path: "/v1/anycast", role: Read, summary: "Show which addresses this node announces by BGP, why, and to whom",
			handler: gives(func(c *call) (AnycastList, error) { return c.server.backend.Anycast(), nil })},
		{method: http.MethodGet, path: "/v1/zones", role: Read, summary: "Show the secondary zones, and what each node has of them",
			handler: gives(func(c *call) (ZoneList, error) { return c.server.backend.Zones(), nil })},
		{method: http.MethodGet, path: "/v1/accelerators/{name}", role: Read, params: []param{inPath("name", "the accelerator"),
			inQuery("node", "only the flows that this node took; default those of all nodes", text), top},
			summary: "Show what goes on at an accelerator: flows, endpoints, paths", handler: gives(func(c *call) (AcceleratorStatus, error) {
				q, err := acceleratorQuery(c)
				if err != nil {
					return AcceleratorStatus{}, err
				}
				return c.server.backend.Accelerator(c.ctx, q)
			})},
		{method: http.MethodGet, path: "/v1/accelerators/{name}/port-mappings", role: Read, params: []param{inPath("name", "the accelerator"),
			inQuery("destination", "only what leads to this address, or address and port", text)},
			summary: "Show where the ports of a custom routing accelerator lead", handler: gives(func(c *call) (PortMappingList, error) {
				return c.server.backend.PortMappings(PortMappingsQuery{Name: c.r.PathValue("name"), Destination: c.query.Get("destination")})
			})},
		{method: http.MethodGet, path: "/v1/events", role: Read, params: []param{
			inQuery("after", "the ID of an event: only later ones, the earliest of them; without it the newest", number),
			inQuery("limit", "at most so many", schema{"type": "integer", "minimum": 1, "maximum": MaxEvents, "default": defaultEvents}),
			inQuery("wait", "how long to wait for an event where there is none, such as 30s; at most 1m", text),
			inQuery("subject", "only of this, and of what is below it, such as accelerator/game", text)},
			summary: "Show what turned, and by what, oldest first", handler: gives(events)},

		{method: http.MethodPost, path: "/v1/purge", role: Purge, again: true, most: MaxBody,
			summary: "Have all caches forget objects, at once", handler: takes(purge)},
		{method: http.MethodPost, path: "/v1/block", role: Operate, again: true, most: MaxBody,
			summary: "Refuse clients, everywhere and at once", handler: takes(block(func(b *Backend) blockOrder { return b.Block }))},
		{method: http.MethodPost, path: "/v1/unblock", role: Operate, again: true, most: MaxBody,
			summary: "Take clients again that were refused", handler: takes(block(func(b *Backend) blockOrder { return b.Unblock }))},
		{method: http.MethodPost, path: "/v1/drain", role: Operate, again: true, most: maxSmall,
			summary: "Send nothing new to a node, a POP or a region", handler: takes(drain(func(b *Backend) drainOrder { return b.Drain }))},
		{method: http.MethodPost, path: "/v1/undrain", role: Operate, again: true, most: maxSmall,
			summary: "Take a drain back", handler: takes(drain(func(b *Backend) drainOrder { return b.Undrain }))},
		{method: http.MethodGet, path: "/v1/orders", role: Read, params: []param{inQuery("after", "an epoch: only later purges", number)},
			summary: "Show what is drained, blocked and was purged", handler: gives(orders)},
		{method: http.MethodPost, path: "/v1/explain", role: Read, most: maxSmall, summary: "Say why a client would be served as it would be",
			handler: takes(func(c *call, req ExplainRequest) (ExplainResponse, error) { return c.server.backend.Explain(req) })},
		{method: http.MethodGet, path: "/v1/schema", role: Read, summary: "Get the JSON Schema of the spec",
			handler: writes("application/schema+json", schemaOfSpec)},
		{method: http.MethodGet, path: "/v1/openapi.json", role: Read, summary: "Get this document",
			handler: writes(asJSON, func(c *call) error {
				c.server.send(c.w, http.StatusOK, asJSON, c.server.openAPI())
				return nil
			})},
		{method: http.MethodGet, path: "/metrics", role: Read, summary: "Get the node's counters in Prometheus's text form",
			handler: writes("text/plain; version=0.0.4", metrics)},

		{method: http.MethodGet, path: "/v1/nodes", role: Read, summary: "List the nodes that the cluster has admitted",
			handler: gives(func(c *call) (NodeList, error) { return c.server.backend.Nodes() })},
		{method: http.MethodPost, path: "/v1/nodes/{name}/revoke", role: Admin, leader: true, again: true, params: []param{node},
			summary: "Shut a node out, everywhere and at once", handler: gives(named("name", func(b *Backend) byName { return b.Revoke }))},
		{method: http.MethodDelete, path: "/v1/nodes/{name}", role: Admin, leader: true, again: true, params: []param{node},
			summary: "Forget a node that is gone for good", handler: gives(named("name", func(b *Backend) byName { return b.Forget }))},

		{method: http.MethodPost, path: "/v1/tokens", role: Admin, leader: true, most: maxSmall,
			summary: "Make a join token", handler: takes(func(c *call, req TokenRequest) (TokenResponse, error) {
				return c.server.backend.CreateToken(c.ctx, c.by, req)
			})},
		{method: http.MethodGet, path: "/v1/tokens", role: Admin, summary: "List the join tokens",
			handler: gives(func(c *call) (TokenList, error) { return c.server.backend.Tokens() })},
		{method: http.MethodDelete, path: "/v1/tokens/{id}", role: Admin, leader: true, again: true, params: []param{inPath("id", "the token's id")},
			summary: "Take a join token back", handler: gives(named("id", func(b *Backend) byName { return b.DeleteToken }))},
		{method: http.MethodPost, path: "/v1/access", role: Admin, leader: true, most: maxSmall,
			summary: "Make an access token", handler: takes(func(c *call, req AccessRequest) (AccessResponse, error) {
				return c.server.backend.CreateAccess(c.ctx, c.by, req)
			})},
		{method: http.MethodGet, path: "/v1/access", role: Admin, summary: "List the access tokens",
			handler: gives(func(c *call) (AccessList, error) { return c.server.backend.Access() })},
		{method: http.MethodDelete, path: "/v1/access/{name}", role: Admin, leader: true, again: true, params: []param{inPath("name", "whose token")},
			summary: "Take an access token back", handler: gives(named("name", func(b *Backend) byName { return b.DeleteAccess }))},

		{method: http.MethodGet, path: "/v1/keys", role: Admin, summary: "List the cluster's keys, without any secret",
			handler: gives(func(c *call) (Keys, error) { return c.server.backend.Keys() })},
		{method: http.MethodPost, path: "/v1/rotate", role: Admin, leader: true, most: maxSmall,
			summary: "Begin to rotate the authority or the gossip key", handler: takes(func(c *call, req RotateRequest) (Recorded, error) {
				return c.server.backend.Rotate(c.ctx, c.by, req)
			})},
		{method: http.MethodGet, path: "/v1/snapshot", role: Admin, leader: true, again: true, summary: "Get all that is agreed, to be restored later",
			handler: writes(binary, snapshot)},
		{method: http.MethodPost, path: "/v1/snapshot", role: Admin, leader: true, stream: true, most: MaxSnapshot,
			summary: "Replace all that is agreed by a snapshot", handler: gives(func(c *call) (RestoreResponse, error) {
				return c.server.backend.Restore(c.ctx, c.by, c.r.Body)
			})},

		{method: http.MethodGet, path: "/v1/accelerators/{name}/here", nodes: true, again: true, params: []param{inPath("name", "the accelerator"), top},
			summary: "Show what goes on at an accelerator on this node alone", handler: gives(func(c *call) (AcceleratorStatus, error) {
				q, err := acceleratorQuery(c)
				if err != nil {
					return AcceleratorStatus{}, err
				}
				return c.server.backend.NodeAccelerator(q)
			})},
		{method: http.MethodPost, path: "/v1/order", nodes: true, leader: true, again: true, most: MaxBody,
			summary: "Agree on an order that another node tells all", handler: takes(func(c *call, req NodeOrder) (Recorded, error) {
				return c.server.backend.Order(c.ctx, c.peer, req)
			})},
		{method: http.MethodPost, path: "/v1/update", nodes: true, leader: true, again: true, most: maxSmall,
			summary: "Agree on an update of a zone that another node was sent", handler: takes(func(c *call, req NodeUpdate) (UpdateResponse, error) {
				return c.server.backend.Update(c.ctx, c.peer, req)
			})},
		{method: http.MethodPost, path: "/v1/join", nodes: true, leader: true, most: maxSmall,
			summary: "Judge a machine that asks to join", handler: takes(func(c *call, req identity.JoinRequest) (identity.JoinAnswer, error) {
				return c.server.backend.Join(c.ctx, c.peer, req)
			})},
		{method: http.MethodPost, path: "/v1/renew", nodes: true, most: maxSmall,
			summary: "Renew a node's certificate", handler: takes(func(c *call, req RenewRequest) (identity.JoinAnswer, error) {
				return c.server.backend.Renew(c.ctx, c.peer, req)
			})},
	}
}

func apply(c *call, req ApplyRequest) (ApplyResponse, error) {
	req.Expect = c.expect
	c.again = req.ID != ""
	if req.Prune != nil && len(req.Prune.Labels) == 0 {
		return ApplyResponse{}, refuse(http.StatusBadRequest, "prune needs a label: without one it would delete all that is in no file")
	}
	for _, f := range req.Files {
		if len(f.Parts) > 0 {
			c.server.parts.Add(1)
		}
	}
	res, err := c.server.backend.Apply(c.ctx, c.by, req)
	return c.changed(res, req.DryRun), err
}

func rollback(c *call, req RollbackRequest) (ApplyResponse, error) {
	req.Expect = c.expect
	c.again = req.ID != ""
	res, err := c.server.backend.Rollback(c.ctx, c.by, req)
	return c.changed(res, req.DryRun), err
}

// changed tags the answer with the revision that the network is at now; after a dry run that is not known.
func (c *call) changed(res ApplyResponse, dryRun bool) ApplyResponse {
	if !dryRun {
		c.etag = &res.Revision
	}
	return res
}

func diff(c *call, req ApplyRequest) (ApplyResponse, error) {
	if slices.ContainsFunc(req.Files, func(f File) bool { return len(f.Parts) > 0 }) {
		return ApplyResponse{}, refuse(http.StatusBadRequest, "files in parts are for apply only")
	}
	if req.Prune != nil && len(req.Prune.Labels) == 0 {
		return ApplyResponse{}, refuse(http.StatusBadRequest, "prune needs a label: without one it would delete all that is in no file")
	}
	res, err := c.server.backend.Diff(c.ctx, c.by, req)
	if err == nil {
		err = Touch(c.by, res.Changes) // the fields tell what was before
	}
	return res, err
}

func resources(c *call) (ResourceList, error) {
	fresh, err := c.flag("fresh")
	if err != nil {
		return ResourceList{}, err
	}
	q := ResourcesQuery{Kind: c.query.Get("kind"), Name: c.query.Get("name"), Fresh: fresh}
	list, err := c.server.backend.Resources(c.ctx, q)
	if err != nil {
		return list, err
	}
	there := len(list.Resources) > 0
	if list = c.visible(list); q.Name != "" && there && len(list.Resources) == 0 {
		return list, refuse(http.StatusNotFound, "no %s %q", q.Kind, q.Name) // as if there were none
	}
	return list, nil
}

func resourcesAt(c *call) (ResourceList, error) {
	revision, err := c.revision()
	if err != nil {
		return ResourceList{}, err
	}
	list, err := c.server.backend.ResourcesAt(revision)
	return c.visible(list), err
}

// visible leaves out what the principal may not touch.
func (c *call) visible(list ResourceList) ResourceList {
	if len(c.by.Resources) > 0 {
		var seen []Resource
		for _, r := range list.Resources {
			if c.by.MayTouch(r.Kind, r.Name) {
				seen = append(seen, r)
			}
		}
		list.Resources = seen
	}
	c.etag = &list.Revision
	return list
}

func history(c *call) (History, error) {
	q := HistoryQuery{Limit: defaultHistory}
	var err error
	if q.Own, err = c.flag("own"); err != nil {
		return History{}, err
	}
	if limit := c.query.Get("limit"); limit != "" {
		if q.Limit, err = strconv.Atoi(limit); err != nil || q.Limit < 1 || q.Limit > MaxHistory {
			return History{}, refuse(http.StatusBadRequest, "limit %.40q: want 1 to %d", limit, MaxHistory)
		}
	}
	h, err := c.server.backend.History(q)
	if err != nil || len(c.by.Resources) == 0 {
		return h, err
	}
	var seen []Record
	for _, r := range h.Records {
		if r, any := c.visibleRecord(r); any {
			seen = append(seen, r)
		}
	}
	h.Records = seen
	return h, nil
}

// visibleRecord leaves out the resources that the principal may not touch; not ok where none is left.
func (c *call) visibleRecord(r Record) (Record, bool) {
	seen := func(refs []Ref) (some []Ref) {
		for _, ref := range refs {
			if c.by.MayTouch(ref.Kind, ref.Name) {
				some = append(some, ref)
			}
		}
		return some
	}
	r.Put, r.Delete = seen(r.Put), seen(r.Delete)
	return r, len(r.Put)+len(r.Delete) > 0
}

func revisionOf(c *call) (RevisionDetail, error) {
	revision, err := c.revision()
	if err != nil {
		return RevisionDetail{}, err
	}
	d, err := c.server.backend.Revision(revision)
	if err != nil || len(c.by.Resources) == 0 {
		return d, err
	}
	record, any := c.visibleRecord(d.Record)
	if !any {
		return RevisionDetail{}, refuse(http.StatusForbidden, "revision %d changed nothing that %s may touch", revision, c.by.Name)
	}
	seen := RevisionDetail{Record: record}
	for _, change := range d.Changes {
		if c.by.MayTouch(change.Kind, change.Name) {
			seen.Changes = append(seen.Changes, change)
		}
	}
	return seen, nil
}

func wait(c *call) (WaitResponse, error) {
	revision, err := c.revision()
	if err != nil {
		return WaitResponse{}, err
	}
	timeout := defaultWait
	if given := c.query.Get("timeout"); given != "" {
		if timeout, err = time.ParseDuration(given); err != nil || timeout < 0 || timeout > MaxWait {
			return WaitResponse{}, refuse(http.StatusBadRequest, "timeout %.40q: want a duration such as 30s, at most %v", given, MaxWait)
		}
	}
	s := c.server
	defer s.waiting.Add(-1)
	if s.waiting.Add(1) > maxWaiting {
		return WaitResponse{}, ErrBusy
	}
	ctx, cancel := context.WithTimeout(c.ctx, timeout)
	defer cancel()
	return s.backend.Wait(ctx, revision)
}

func schemaOfSpec(c *call) error {
	c.server.send(c.w, http.StatusOK, "application/schema+json", c.server.backend.Schema())
	return nil
}

func metrics(c *call) error {
	var out bytes.Buffer
	if err := c.server.backend.Metrics(&out); err != nil {
		return err
	}
	c.server.send(c.w, http.StatusOK, "text/plain; version=0.0.4", out.Bytes())
	return nil
}

func orders(c *call) (OrderList, error) {
	after, err := uint64(0), error(nil)
	if given := c.query.Get("after"); given != "" {
		if after, err = strconv.ParseUint(given, 10, 63); err != nil {
			return OrderList{}, refuse(http.StatusBadRequest, "after %.40q: want an epoch", given)
		}
	}
	return c.server.backend.Orders(after), nil
}

func acceleratorQuery(c *call) (AcceleratorQuery, error) {
	q := AcceleratorQuery{Name: c.r.PathValue("name"), Node: c.query.Get("node"), Top: defaultTopFlows}
	if given := c.query.Get("top"); given != "" {
		var err error
		if q.Top, err = strconv.Atoi(given); err != nil || q.Top < 0 || q.Top > MaxTopFlows {
			return q, refuse(http.StatusBadRequest, "top %.40q: want 0 to %d", given, MaxTopFlows)
		}
	}
	return q, nil
}

func events(c *call) (EventList, error) {
	q := EventQuery{Limit: defaultEvents, Subject: c.query.Get("subject")}
	var err error
	if given := c.query.Get("after"); given != "" {
		if q.After, err = strconv.ParseUint(given, 10, 63); err != nil {
			return EventList{}, refuse(http.StatusBadRequest, "after %.40q: want the ID of an event", given)
		}
	}
	if given := c.query.Get("limit"); given != "" {
		if q.Limit, err = strconv.Atoi(given); err != nil || q.Limit < 1 || q.Limit > MaxEvents {
			return EventList{}, refuse(http.StatusBadRequest, "limit %.40q: want 1 to %d", given, MaxEvents)
		}
	}
	if given := c.query.Get("wait"); given != "" {
		if q.Wait, err = time.ParseDuration(given); err != nil || q.Wait < 0 || q.Wait > maxEventWait {
			return EventList{}, refuse(http.StatusBadRequest, "wait %.40q: want a duration up to %s", given, maxEventWait)
		}
	}
	s := c.server
	defer s.waiting.Add(-1)
	if s.waiting.Add(1) > maxWaiting {
		return EventList{}, ErrBusy
	}
	return s.backend.Events(c.ctx, q)
}

type (
	blockOrder = func(context.Context, Principal, BlockRequest) (OrderResponse, error)
	drainOrder = func(context.Context, Principal, DrainRequest) (OrderResponse, error)
)

func purge(c *call, req PurgeRequest) (OrderResponse, error) {
	if err := Touch(c.by, []Change{{Kind: "Distribution", Name: req.Distribution}}); err != nil {
		return OrderResponse{}, err
	}
	return c.server.backend.Purge(c.ctx, c.by, req)
}

func block(f func(*Backend) blockOrder) func(*call, BlockRequest) (OrderResponse, error) {
	return func(c *call, req BlockRequest) (OrderResponse, error) {
		for _, cidr := range req.CIDRs {
			if err := Touch(c.by, []Change{{Kind: "Block", Name: strings.ReplaceAll(cidr.String(), "/", "-")}}); err != nil {
				return OrderResponse{}, err
			}
		}
		return f(&c.server.backend)(c.ctx, c.by, req)
	}
}

func drain(f func(*Backend) drainOrder) func(*call, DrainRequest) (OrderResponse, error) {
	return func(c *call, req DrainRequest) (OrderResponse, error) {
		kind, known := map[string]string{ScopeNode: "Node", ScopePOP: "POP", ScopeRegion: "Region"}[req.Scope]
		if !known {
			return OrderResponse{}, refuse(http.StatusBadRequest, "scope %.40q: want node, pop or region", req.Scope)
		}
		if err := Touch(c.by, []Change{{Kind: kind, Name: req.Name}}); err != nil {
			return OrderResponse{}, err
		}
		return f(&c.server.backend)(c.ctx, c.by, req)
	}
}

// snapshot sends all that is agreed. What breaks off must not pass for a whole one: it ends the connection.
func snapshot(c *call) error {
	out := &snapshotWriter{c: c}
	err := c.server.backend.Snapshot(c.ctx, out)
	if err != nil && out.sent > 0 {
		c.server.abort()
	}
	return err
}

type snapshotWriter struct {
	c    *call
	sent int64
}

func (w *snapshotWriter) Write(p []byte) (int, error) {
	if w.sent == 0 {
		http.NewResponseController(w.c.w).SetWriteDeadline(time.Now().Add(streamTime))
		w.c.w.Header().Set("Content-Type", binary)
	}
	if w.sent+int64(len(p)) > MaxSnapshot {
		return 0, fmt.Errorf("the snapshot is longer than %d bytes", MaxSnapshot)
	}
	n, err := w.c.w.Write(p)
	w.sent += int64(n)
	return n, err
}

type byName = func(context.Context, Principal, string) (Recorded, error)

// named does something to what the path names.
func named(part string, f func(*Backend) byName) func(*call) (Recorded, error) {
	return func(c *call) (Recorded, error) {
		name := c.r.PathValue(part)
		if name == "" || len(name) > maxName {
			return Recorded{}, refuse(http.StatusBadRequest, "%s: want 1 to %d bytes", part, maxName)
		}
		return f(&c.server.backend)(c.ctx, c.by, name)
	}
}

// revision is the one in the path.
func (c *call) revision() (uint64, error) {
	given := c.r.PathValue("rev")
	revision, err := strconv.ParseUint(given, 10, 63)
	if err != nil {
		return 0, refuse(http.StatusBadRequest, "revision %.40q: want a number", given)
	}
	return revision, nil
}

// flag is one in the query; absent is false.
func (c *call) flag(name string) (bool, error) {
	switch c.query.Get(name) {
	case "true":
		return true, nil
	case "", "false":
		return false, nil
	}
	return false, refuse(http.StatusBadRequest, "%s: want true or false", name)
}
