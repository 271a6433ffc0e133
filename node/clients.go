package node

import (
	"context"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/perigee-net/perigee/cluster/clients"
	"github.com/perigee-net/perigee/cluster/report"
	"github.com/perigee-net/perigee/cluster/view"
)

// see takes in how far a client of this node's doors is.
func (n *Node) see(from netip.Addr, rtt time.Duration) { n.clients.Observe(from, rtt, time.Now()) }

// tellClients says how far clients are, and draws the map of what all nodes say, until the context ends.
func (n *Node) tellClients(ctx context.Context) {
	heard := heardClients{}
	for sleep(ctx, clients.SayEvery) {
		v := n.view.Get()
		for _, value := range n.clients.Say(time.Now(), clients.MostTold(len(v.Members))) {
			n.publish(clientsKey+strconv.Itoa(value.Shard), value.Bytes)
		}
		// What the others say of the same moment is on its way: they are heard the next time. How far POPs are from each other changes too.
		n.clientMap.Store(n.drawClients(heard, v))
		n.look()
	}
}

// heardClients is what nodes say, read, by name. What a node says in the same words as before is not read again.
type heardClients map[string]*heardNode

type heardNode struct {
	said  map[string][]byte
	parts map[string]heardPart // by key
	rows  []clients.Row
}

type heardPart struct {
	value []byte
	rows  []clients.Row
}

// drawClients draws the map of all that live nodes have seen.
func (n *Node) drawClients(heard heardClients, v *view.View) *clients.Map {
	said := n.sayings()
	var nodes []clients.Node
	for name := range heard {
		if _, lives := v.Member(name); !lives {
			delete(heard, name)
		}
	}
	of := map[clients.POP][]string{}
	for _, m := range v.Members {
		pop := clients.POP{Region: m.Region, Name: m.POP}
		nodes = append(nodes, clients.Node{POP: pop, Rows: n.hearClients(heard, m.Name, said)})
		of[pop] = append(of[pop], m.Name)
	}
	return clients.NewMap(nodes, func(a, b clients.POP) (least time.Duration, ok bool) {
		for _, x := range of[a][:min(len(of[a]), nodesOfPOP)] {
			for _, y := range of[b][:min(len(of[b]), nodesOfPOP)] {
				if rtt, known := n.away(x, y); known && (!ok || rtt < least) {
					least, ok = rtt, true
				}
			}
		}
		return least, ok
	})
}

// nodesOfPOP is how many nodes of each of two POPs are asked how far they are from each other.
const nodesOfPOP = 2

// hearClients is what a node has seen. Its own words count too, once they are said.
func (n *Node) hearClients(heard heardClients, name string, said report.Entries) []clients.Row {
	values, before := said[name], heard[name]
	if before != nil && reflect.ValueOf(before.said).UnsafePointer() == reflect.ValueOf(values).UnsafePointer() {
		return before.rows
	}
	now := &heardNode{said: values, parts: map[string]heardPart{}}
	for key, value := range values {
		if !strings.HasPrefix(key, clientsKey) {
			continue
		}
		if before != nil {
			if had, ok := before.parts[key]; ok && slices.Equal(had.value, value) {
				now.parts[key] = had
				now.rows = append(now.rows, had.rows...)
				continue
			}
		}
		rows, err := clients.Decode(value)
		if err != nil {
			n.malformed.Add(1)
		}
		now.parts[key] = heardPart{value, rows}
		now.rows = append(now.rows, rows...)
	}
	heard[name] = now
	return now.rows
}
