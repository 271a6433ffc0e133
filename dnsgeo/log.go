package dnsgeo

import (
	"math/rand/v2"
	"time"

	"github.com/perigee-net/perigee/dnsgeo/policy"
	"github.com/perigee-net/perigee/dnsgeo/querylog"
)

// scribe writes down queries as one goroutine answers them.
type scribe struct {
	log   *querylog.Log
	entry querylog.Entry
	reply *reply
	line  []byte // used again
}

// maxLine is what is kept for a line; a longer one takes memory.
const maxLine = 4096

func newScribe(s *Server, y *reply) *scribe {
	w := &scribe{log: s.config.QueryLog, reply: y, line: make([]byte, 0, maxLine)}
	w.entry.Node, w.entry.Names, w.entry.Answer = s.config.Name, policyNames(), w.answer
	return w
}

func policyNames() (names []string) {
	for p := range policies {
		names = append(names, policy.Policy(p).String())
	}
	return names
}

// answer is the i-th record of the answer section, which comes first.
func (w *scribe) answer(i int) (typ uint16, ttl uint32, data []byte) {
	r := &w.reply.records[i]
	return r.typ, r.ttl, r.data
}

// write writes the query down that was answered last, if its zone wants that and chance does. What a zone did not answer, and what is no
// query, is nobody's. Of a response that was held back (nil) the size is 0.
func (w *scribe) write(a *asker, m []byte, r *request, response []byte, by Transport, began time.Time) {
	rate := a.zone.LogRate()
	if rate <= 0 || rate < 1 && rand.Float64() >= rate { // not by the query's own chance, which the answer goes by
		return
	}
	e := &w.entry
	now := time.Now()
	e.Time, e.Took = now, now.Sub(began)
	e.Zone, e.Name = plainName(a.zone.Name), m[headerSize:r.question]
	e.Type, e.Rcode, e.Proto, e.POP = r.typ, a.reply.Rcode, by.String(), a.scene.self.pop
	e.Resolver, e.Subnet = a.query.Client, r.ecs
	e.Revision, e.Scope, e.Policies, e.Rate = a.table.spec.Revision, a.reply.Scope, a.policies, rate
	e.Size, e.Cut, e.Count = len(response), len(response) > 0 && response[2]&0x02 != 0, 0
	for e.Count < len(a.reply.records) && a.reply.records[e.Count].section == answers {
		e.Count++
	}
	if w.log.JSON() {
		w.line = e.AppendJSON(w.line[:0])
	} else {
		w.line = e.AppendRoute53(w.line[:0])
	}
	w.log.Add(w.line)
	if cap(w.line) > maxLine {
		w.line = make([]byte, 0, maxLine)
	}
}
