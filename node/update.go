package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/perigee-net/perigee/cluster/roster"
	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/store"
	"github.com/perigee-net/perigee/dnsgeo"
	"github.com/perigee-net/perigee/node/api"
)

// Response codes of the DNS (RFC 1035 section 4.1.1).
const (
	rcodeServerFailure = 2
	rcodeRefused       = 5
)

// refusedUpdate is an update of a zone that is not to be.
type refusedUpdate struct {
	rcode int
	why   string
}

func (e *refusedUpdate) Error() string {
	return fmt.Sprintf("the update is refused (%d): %s", e.rcode, e.why)
}

// agreeOnUpdate has the cluster agree on an update of a zone that this node was sent, and waits until this node answers by it: whoever is
// told that it is done finds it here.
func (n *Node) agreeOnUpdate(ctx context.Context, u dnsgeo.Update) dnsgeo.UpdateAnswer {
	req := api.NodeUpdate{Message: u.Message, Client: u.Client.String()}
	res, err := atLeader(ctx, n, func(ctx context.Context) (api.UpdateResponse, error) { return n.updateOf(ctx, n.cfg.Name, req) },
		func(ctx context.Context, leader *api.Client) (api.UpdateResponse, error) {
			return leader.Update(ctx, req)
		})
	if err != nil {
		return dnsgeo.UpdateAnswer{Rcode: rcodeServerFailure, Why: err.Error()}
	}
	if res.Revision > 0 {
		n.holdRunning(ctx, res.Revision)
	}
	return dnsgeo.UpdateAnswer{Rcode: res.Rcode, Why: res.Why}
}

// holdRunning waits until this node runs a revision, for holdTime at most: it may have refused it.
func (n *Node) holdRunning(ctx context.Context, revision uint64) {
	ctx, cancel := context.WithTimeout(ctx, holdTime)
	defer cancel()
	for version := uint64(0); ; {
		r, v, err := n.running.Next(ctx, version)
		if err != nil || r.spec.Revision >= revision {
			return
		}
		version = v
	}
}

// updateOf judges an update that a node was sent over what the changes before it will have led to, on the leader, and brings it into
// the log. One that comes again, to whatever node, is done once.
func (n *Node) updateOf(ctx context.Context, peer string, req api.NodeUpdate) (api.UpdateResponse, error) {
	p := n.planner()
	res, err := n.change(ctx, dnsgeo.UpdateID(req.Message), nil, false, func(over base) (plan, error) { return p.update(over, peer, req) })
	var no *refusedUpdate
	if errors.As(err, &no) {
		return api.UpdateResponse{Rcode: no.rcode, Why: no.why}, nil
	}
	return api.UpdateResponse{Revision: res.Revision}, err
}

// update judges an update of a zone that a node was sent. The zone's document stays as it is written but for the lines of the records that
// change, if it has such; else it is written anew.
func (p planner) update(over base, node string, req api.NodeUpdate) (plan, error) {
	v, key := dnsgeo.JudgeUpdate(over.spec, req.Message)
	if v.Rcode != 0 {
		return plan{}, &refusedUpdate{v.Rcode, v.Why}
	}
	who := roster.Principal{Name: "key " + key, Roles: []roster.Role{roster.RoleOperate}}
	change := store.Change{ID: dnsgeo.UpdateID(req.Message), Note: fmt.Sprintf("update of the zone from %.60s, at %s", req.Client, node)}
	if v.Zone == nil {
		return p.judge(over, who, nil, nil, p.options, change)
	}
	ref := spec.Ref{Kind: "HostedZone", Name: v.Zone.Name}
	object, there := over.state.Get(ref.Kind, ref.Name)
	if !there || slices.ContainsFunc(over.spec.Unknown, func(u spec.Unknown) bool { return u.Ref == ref }) {
		return plan{}, &refusedUpdate{rcodeServerFailure, "the leader is of an older release than the zone"}
	}
	doc := documents([]store.Object{object})[0]
	doc.Before = doc.Bytes
	if rewritten, ok := spec.Rewritten(doc, over.spec.HostedZones[ref.Name], v.Zone, v.From); ok {
		doc.Bytes = rewritten
		made, err := p.judge(over, who, []spec.Document{doc}, nil, p.options, change)
		if err == nil && made.spec.HostedZones[ref.Name].Equal(v.Zone) {
			return made, nil
		}
	}
	var err error
	if doc.Bytes, err = (spec.Resource{Ref: ref, Value: v.Zone}).YAML(); err != nil {
		return plan{}, err
	}
	made, err := p.judge(over, who, []spec.Document{doc}, nil, p.options, change)
	if err != nil {
		return plan{}, &refusedUpdate{rcodeRefused, firstLine(err)}
	}
	return made, nil
}

// firstLine is what a refusal says first of what is wrong.
func firstLine(err error) string {
	var e *api.Error
	if errors.As(err, &e) && len(e.Faults) > 0 {
		return strings.TrimPrefix(e.Faults[0], "HostedZone ")
	}
	return err.Error()
}
