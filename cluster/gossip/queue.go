package gossip

import (
	"math"
	"slices"
	"sync"
)

// queue holds the messages that wait to be spread. Those that were sent least often go first, the older of them before the
// newer, and each goes out so often as it takes to reach all.
//
// memberlist has such a queue (v0.7.0). When it has been emptied it numbers from the beginning again, also while it puts
// a message back, and of two messages with the same number, length and count of sendings it keeps one. Values that follow each
// other closely are of one length: some were never sent.
type queue struct {
	mu     sync.Mutex
	byName map[string]*waiting
	tiers  [][]*waiting // by how often they were sent; those that were replaced are still in it
	dead   int          // that have been replaced since the last sweep
}

// waiting is a message in the queue.
type waiting struct {
	name    string
	message []byte // nil: another has taken its place
}

// put queues a message in the place of the one of that name. Beyond maxQueued the one that was sent most often gives way.
func (q *queue) put(name string, message []byte) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if old := q.byName[name]; old != nil {
		old.message = nil
		if q.dead++; q.dead > maxQueued {
			q.sweep()
		}
	}
	if q.byName == nil {
		q.byName = map[string]*waiting{}
	}
	w := &waiting{name, message}
	q.byName[name] = w
	q.add(0, w)
	for tier := len(q.tiers) - 1; len(q.byName) > maxQueued; tier-- {
		for len(q.byName) > maxQueued && len(q.tiers[tier]) > 0 {
			q.drop(q.tiers[tier][0])
			q.tiers[tier] = q.tiers[tier][1:]
		}
	}
}

func (q *queue) add(tier int, w *waiting) {
	for len(q.tiers) <= tier {
		q.tiers = append(q.tiers, nil)
	}
	q.tiers[tier] = append(q.tiers[tier], w)
}

// sweep takes out those that were replaced: where nobody is to be told, nobody else does.
func (q *queue) sweep() {
	for tier := range q.tiers {
		q.tiers[tier] = slices.DeleteFunc(q.tiers[tier], func(w *waiting) bool { return w.message == nil })
	}
	q.dead = 0
}

// drop forgets one that is sent no more.
func (q *queue) drop(w *waiting) {
	if w.message != nil {
		delete(q.byName, w.name)
		w.message = nil
	}
}

// take gives messages for one packet, of at most limit bytes with an overhead each, and counts them as sent.
func (q *queue) take(overhead, limit, nodes int) (messages [][]byte) {
	q.mu.Lock()
	defer q.mu.Unlock()
	most := retransmitMult * int(math.Ceil(math.Log10(float64(nodes+1))))
	var sent [][]*waiting // by the tier that they were in
	for tier, all := range q.tiers {
		var kept, went []*waiting
		for i, w := range all {
			size := overhead + len(w.message)
			switch {
			case w.message == nil:
				continue
			case size <= limit:
				limit -= size
				messages = append(messages, w.message)
				went = append(went, w)
			default:
				kept = append(kept, w)
			}
			if limit <= overhead+smallest {
				kept = append(kept, all[i+1:]...)
				break
			}
		}
		q.tiers[tier], sent = kept, append(sent, went)
		if limit <= overhead+smallest {
			break
		}
	}
	for tier, went := range sent {
		for _, w := range went {
			if tier+1 >= most {
				q.drop(w)
			} else {
				q.add(tier+1, w)
			}
		}
	}
	for len(q.tiers) > 0 && len(q.tiers[len(q.tiers)-1]) == 0 {
		q.tiers = q.tiers[:len(q.tiers)-1]
	}
	return messages
}

// smallest is the least that a message has, in bytes: with less room left a packet is full.
const smallest = 16

// len is how many messages wait.
func (q *queue) len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.byName)
}
