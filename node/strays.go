package node

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/perigee-net/perigee/cluster/backbone"
	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/view"
	"github.com/perigee-net/perigee/edge/anycast/stray"
)

// openStrays has segments of established flows go to the node that has the flow, where the machine can do that: a node that announces goes without, if need be, and then
// its kernel resets what routing leads here of others' flows.
func (n *Node) openStrays() {
	switch {
	case n.cfg.BGP.HandOver == HandOverNever:
		n.strayless = "the node was started with --anycast-hand-over never"
		return
	case !n.cfg.kernel:
		n.strayless = "the network is not the machine's"
		return
	}
	hand, err := stray.Open(stray.Config{
		Log: n.cfg.Log,
		Open: func(node string, receive func([][]byte), end func(error)) (stray.Way, error) {
			d, err := n.backbone.OpenDatagrams(node, backbone.Header{Service: strayService}, true, backbone.Receiver{Receive: receive, End: func(err error) {
				if no, is := errors.AsType[*backbone.RefusedError](err); is && no.NoService() {
					err = stray.ErrNoService
				}
				end(err)
			}})
			if err != nil {
				return nil, err
			}
			return d, nil
		},
	})
	if err != nil {
		n.strayless = err.Error()
		n.cfg.Log.Warn("segments of flows that other nodes have cannot be handed over to them: flows are reset when routing leads them to another node", "error", err)
		return
	}
	n.strays = hand
	n.counted = append(n.counted, hand)
	n.backbone.HandleDatagrams(strayService, func(a backbone.Arrival) (backbone.Receiver, error) {
		return backbone.Receiver{Receive: func(all [][]byte) { hand.Receive(all, a.Back.Send) }}, nil
	})
	n.onClose("hand-over of flows", func(context.Context) error { hand.Close(); return nil })
}

// setStrays says of which addresses there may be flows elsewhere, and who may have them.
func (n *Node) setStrays(v *view.View) {
	if n.strays == nil {
		return
	}
	addresses := slices.Clone(n.cfg.BGP.Anycast) // of whoever listens there: every port is looked at
	whole := map[netip.Addr]bool{}
	for _, a := range addresses {
		whole[a.Unmap()] = true
	}
	var doors []netip.AddrPort
	for _, l := range n.accelerator.Listeners() {
		if a := l.Address.Addr(); l.Protocol == spec.TCP && !whole[a.Unmap()] {
			addresses, doors = append(addresses, a), append(doors, l.Address)
		}
	}
	me, _ := v.Member(n.cfg.Name)
	n.strays.Narrow(doors)
	n.strays.Set(addresses, stray.Owners(v), me.Leaving || me.Drained != "")
}

// straysLine says for people whether segments are handed over.
func (n *Node) straysLine() string {
	if n.strays == nil {
		return "established flows that other nodes have are reset when routing leads them here: " + n.strayless
	}
	if n.strays.Ended() {
		return "established flows that other nodes have are reset when routing leads them here: somebody took away the device by which segments came, or it cannot be set up again"
	}
	switch owners := len(stray.Owners(n.view.Get())); owners {
	case 0:
		return "established flows that other nodes have would be handed over to them: there is none"
	case 1:
		return "established flows that another node has are handed over to it, when routing leads them here"
	default:
		return fmt.Sprintf("established flows that %d other nodes have are handed over to them, when routing leads them here", owners)
	}
}
