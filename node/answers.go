package node

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/perigee-net/perigee/cluster/event"
	"github.com/perigee-net/perigee/cluster/view"
	"github.com/perigee-net/perigee/dnsgeo"
	"github.com/perigee-net/perigee/node/api"
)

// compareTime is how often a node that answers names compares what it answers with what the others do.
const compareTime = 10 * time.Second

// compared is what comparing answers came to.
type compared struct {
	times, differ atomic.Uint64 // comparisons with another node, and those of them that were not alike
}

// Counters are the numbers since the start, by name.
func (c *compared) Counters() map[string]uint64 {
	return map[string]uint64{
		"dns_answers_compared_total": c.times.Load(),
		"dns_answers_differ_total":   c.differ.Load(),
	}
}

// compareAnswers says what this node answers to a sample of questions, and tells if others that should answer the same do not, until the
// context ends. The others are compared by what they said last, which may be a while before: equal revisions and equal views give equal
// answers, whenever that was.
func (n *Node) compareAnswers(ctx context.Context) {
	var told []string
	for sleep(ctx, compareTime) {
		own, ok := n.names.Sample()
		if !ok {
			continue
		}
		n.publish(answersKey, own.Encode())
		others, bad := n.samples()
		n.malformed.Add(bad)
		delete(others, n.cfg.Name)
		var differ []string
		for _, name := range slices.Sorted(maps.Keys(others)) {
			if theirs := others[name]; theirs.Comparable(own) {
				n.compared.times.Add(1)
				if theirs.Answers != own.Answers {
					n.compared.differ.Add(1)
					differ = append(differ, name)
				}
			}
		}
		if slices.Equal(told, differ) {
			continue
		}
		if told = differ; len(differ) == 0 {
			n.events.Add(event.Answers, "node/"+n.cfg.Name, "answers names as all others with the same revision and view do")
			continue
		}
		text := fmt.Sprintf("answers names otherwise than %s, at the same revision (%d) and view", strings.Join(differ, ", "), own.Revision)
		n.cfg.Log.Error("this node "+text, "view", own.View, "answers", own.Answers)
		n.events.Add(event.Answers, "node/"+n.cfg.Name, text)
	}
}

// samples are what the live nodes said of their answers, by name, and how many said what is none.
func (n *Node) samples() (all map[string]dnsgeo.Sample, bad uint64) {
	all = map[string]dnsgeo.Sample{}
	said := n.sayings()
	for _, m := range n.view.Get().Members {
		value := said[m.Name][answersKey]
		if value == nil || !m.Has(view.DNS) {
			continue
		}
		s, err := dnsgeo.DecodeSample(value)
		if err != nil {
			bad++
			continue
		}
		all[m.Name] = s
	}
	return all, bad
}

// disagreements are the groups of nodes that should answer the same and do not: in each, by what they answer, the nodes, most first.
func disagreements(all map[string]dnsgeo.Sample) []api.AnswersDiffer {
	type key struct{ revision, view uint64 }
	groups := map[key]map[uint64][]string{}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		s := all[name]
		k := key{s.Revision, s.View}
		if groups[k] == nil {
			groups[k] = map[uint64][]string{}
		}
		groups[k][s.Answers] = append(groups[k][s.Answers], name)
	}
	var found []api.AnswersDiffer
	for k, by := range groups {
		if len(by) < 2 {
			continue
		}
		d := api.AnswersDiffer{Revision: k.revision}
		for _, nodes := range by {
			d.Nodes = append(d.Nodes, nodes)
		}
		slices.SortFunc(d.Nodes, func(a, b []string) int { return cmp.Or(len(b)-len(a), slices.Compare(a, b)) })
		found = append(found, d)
	}
	slices.SortFunc(found, func(a, b api.AnswersDiffer) int {
		return cmp.Or(cmp.Compare(b.Revision, a.Revision), slices.Compare(a.Nodes[0], b.Nodes[0]))
	})
	return found
}
