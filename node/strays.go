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
	addresses, doors := n.strayDoors()
	me, _ := v.Member(n.cfg.Name)
	n.strays.Narrow(doors)
	n.strays.Set(addresses, stray.Owners(v), me.Leaving || me.Drained != "")
}

// strayDoors are the doors by which flows come that another node may have, and their addresses: those of accelerators, and at the addresses of --anycast all others that this
// node has. What comes there by other ports is for other programs of the machine.
func (n *Node) strayDoors() (addresses []netip.Addr, doors []netip.AddrPort) {
	own := slices.Clone(n.nameDoors)
	for _, l := range n.accelerator.Listeners() {
		if l.Protocol != spec.TCP {
			continue
		}
		doors = append(doors, l.Address)
		if n.cfg.OwnDoors {
			own = append(own, netip.AddrPortFrom(n.doorHost, l.Address.Port()))
		}
	}
	for _, d := range n.ownDoors {
		own = append(own, d.Address)
	}
	if n.has(view.Origin) {
		for _, l := range n.origin.Listeners() {
			own = append(own, netip.AddrPortFrom(n.doorHost, l.Port))
		}
	}
	doors = append(doors, doorsAt(n.cfg.BGP.Anycast, own)...)
	for _, d := range doors {
		addresses = append(addresses, d.Addr())
	}
	return addresses, doors
}

// doorsAt are the doors that are at some addresses: one without an address, or at 0.0.0.0 or ::, is at each.
func doorsAt(addresses []netip.Addr, doors []netip.AddrPort) (all []netip.AddrPort) {
	for _, a := range addresses {
		for _, d := range doors {
			if at := d.Addr(); d.Port() != 0 && (!at.IsValid() || at.IsUnspecified() || at.Unmap() == a.Unmap()) {
				all = append(all, netip.AddrPortFrom(a, d.Port()))
			}
		}
	}
	return all
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
