// Package event is the timeline of one node: what turned, when, and why, each event linked to those that caused it. Log
// keeps the last of them in memory; Effects finds, purely, what follows from the difference between two moments.
//
// It is for people and tools that watch. Nothing decides by it, nothing is agreed by it, and it is one node's: another
// saw other things first. It does not outlive the process, and what is older than the ring is gone. Texts are cut and
// numbers bounded, so that no flood of turns costs more than its share.
package event

import (
	"cmp"
	"container/list"
	"context"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"
)

// The kinds of events.
const (
	Health = "health" // a verdict turned
	Member = "member" // a node came, went, or is leaving
	Link   = "link"   // this node's own way to another
	Drain  = "drain"
	Block  = "block"
	Purge  = "purge"
	Order  = "order" // of the fast lane, when it is none of the three above
	Fence  = "fence"
	Spec   = "spec"  // a revision came into force, or was refused
	Route  = "route" // what the above did to what is chosen
	Leader = "leader"
	// Answers tells whether this node answers names as others do.
	Answers = "answers"
	Places  = "places" // another file says where clients are, or was refused
	Zone    = "zone"   // a secondary zone has a new version, or has expired
)

// Bounds.
const (
	DefaultSize = 4096 // events in a log
	maxSubject  = 256  // bytes
	maxText     = 512  // bytes
	maxCauses   = 16   // of one event

	maxTurns   = 16 // events kept of one subject
	indexShare = 4  // events kept by subject, at most, for each one of the ring
)

// Event is one thing that happened, as its node saw it.
type Event struct {
	// ID counts up by one from 1, in one process of one node.
	ID   uint64    `json:"id"`
	Node string    `json:"node"`
	Time time.Time `json:"time"`
	Kind string    `json:"kind"`
	// Subject is what it happened to, as kind/name: node/fra1, target/web/10.0.0.1:80, loadBalancer/web.
	Subject string `json:"subject,omitempty"`
	Text    string `json:"text"`
	// Causes are the IDs of events before it, of the same node, which may be gone from its log.
	Causes []uint64 `json:"causes,omitempty"`
}

// Log is the last events of one node. It is safe for use by many.
type Log struct {
	node string

	mu     sync.Mutex
	ring   []*Event // the event of an ID is at (ID−1) mod len
	newest uint64
	added  chan struct{} // closed by the next Add; nil where nobody waits

	turns   map[string]*list.Element // by subject, of *history
	spoke   *list.List               // the histories, the subject that spoke last first
	indexed int                      // events in all histories
}

// history is the last events of one subject, oldest first.
type history struct {
	subject string
	events  []*Event
}

// New makes an empty log of a node that keeps so many events: DefaultSize if size is below 1.
func New(node string, size int) *Log {
	if size < 1 {
		size = DefaultSize
	}
	return &Log{node: node, ring: make([]*Event, size), turns: map[string]*list.Element{}, spoke: list.New()}
}

// Add appends an event of now and returns its ID. A subject beyond 256 bytes and a text beyond 512 are cut, and control
// characters in them made spaces; of its causes the first 16 are kept; what is no ID given out before is not a cause.
func (l *Log) Add(kind, subject, text string, causes ...uint64) uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.add(l.event(kind, subject, text), causes)
}

func (l *Log) event(kind, subject, text string) *Event {
	return &Event{
		Node: l.node, Time: time.Now().UTC().Truncate(time.Millisecond),
		Kind: kind, Subject: cut(subject, maxSubject), Text: cut(text, maxText),
	}
}

func (l *Log) add(e *Event, causes []uint64) uint64 {
	for _, c := range causes {
		if c > 0 && c <= l.newest && len(e.Causes) < maxCauses && !slices.Contains(e.Causes, c) {
			e.Causes = append(e.Causes, c)
		}
	}
	l.newest++
	e.ID = l.newest
	l.ring[(e.ID-1)%uint64(len(l.ring))] = e
	if e.Subject != "" {
		l.index(e)
	}
	if l.added != nil {
		close(l.added)
		l.added = nil
	}
	return e.ID
}

// index keeps the event with those of its subject. It outlives the ring, so that the turns of a quiet thing are not pushed
// out by a noisy one; those who have been quiet longest are forgotten first.
func (l *Log) index(e *Event) {
	at := l.turns[e.Subject]
	if at == nil {
		at = l.spoke.PushFront(&history{subject: e.Subject})
		l.turns[e.Subject] = at
	}
	l.spoke.MoveToFront(at)
	h := at.Value.(*history)
	if len(h.events) == maxTurns {
		h.events = slices.Delete(h.events, 0, 1)
		l.indexed--
	}
	h.events = append(h.events, e)
	l.indexed++
	for l.indexed > indexShare*len(l.ring) && l.spoke.Len() > 1 {
		oldest := l.spoke.Remove(l.spoke.Back()).(*history)
		delete(l.turns, oldest.subject)
		l.indexed -= len(oldest.events)
	}
}

// Since returns the events after an ID, oldest first, at most limit of them (all if limit is below 1), and how many
// after that ID are gone from the log. An ID that was never given out is of another life of the node: then all are
// returned. The events must not be changed.
func (l *Log) Since(id uint64, limit int) (events []Event, lost uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if id > l.newest {
		id = 0
	}
	if size := uint64(len(l.ring)); l.newest-id > size {
		lost = l.newest - size - id
		id += lost
	}
	n := l.newest - id
	if limit > 0 {
		n = min(n, uint64(limit))
	}
	events = make([]Event, n)
	for i := range events {
		events[i] = *l.ring[(id+uint64(i))%uint64(len(l.ring))]
	}
	return events, lost
}

// Newest is the ID of the newest event; 0: there is none.
func (l *Log) Newest() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.newest
}

// Next returns as soon as Since(after, …) has an event to return, or with the context's error.
func (l *Log) Next(ctx context.Context, after uint64) error {
	for {
		l.mu.Lock()
		if l.newest > 0 && after != l.newest {
			l.mu.Unlock()
			return nil
		}
		if l.added == nil {
			l.added = make(chan struct{})
		}
		added := l.added
		l.mu.Unlock()
		select {
		case <-added:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Last returns the last events of a subject, newest first, at most n of them. The last 16 of it are kept, for as long as
// there are not too many others: four times as many events in all as the log has room for.
func (l *Log) Last(subject string, n int) []Event {
	l.mu.Lock()
	defer l.mu.Unlock()
	at := l.turns[cut(subject, maxSubject)]
	if at == nil {
		return nil
	}
	var last []Event
	for _, e := range slices.Backward(at.Value.(*history).events) {
		if len(last) >= n {
			break
		}
		last = append(last, *e)
	}
	return last
}

// Of returns the events after an ID of a subject and of all that is below it (accelerator/game: accelerator/game/443/eu, too), oldest first: those
// that the log still has, and those that Last would return.
func (l *Log) Of(subject string, id uint64) []Event {
	l.mu.Lock()
	defer l.mu.Unlock()
	if id > l.newest {
		id = 0
	}
	var found []*Event
	for name, at := range l.turns {
		if within(name, subject) {
			found = append(found, at.Value.(*history).events...)
		}
	}
	for _, e := range l.ring {
		if e == nil {
			break
		}
		if within(e.Subject, subject) {
			found = append(found, e)
		}
	}
	slices.SortFunc(found, func(a, b *Event) int { return cmp.Compare(a.ID, b.ID) })
	var events []Event
	for i, e := range found {
		if e.ID > id && (i == 0 || e.ID != found[i-1].ID) {
			events = append(events, *e)
		}
	}
	return events
}

// within says whether a subject is another one or below it.
func within(subject, of string) bool {
	below, is := strings.CutPrefix(subject, of)
	return is && (below == "" || below[0] == '/')
}

// Counters returns what is kept and was added.
func (l *Log) Counters() map[string]uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return map[string]uint64{
		"events_total":    l.newest,
		"events_subjects": uint64(len(l.turns)),
	}
}

// cut makes the text one line of valid UTF-8 and at most so many bytes, and cuts no character in two. It may be of a
// stranger's making, a target's answer say, and is shown in terminals: so it has no control characters.
func cut(text string, most int) string {
	text = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r // what is not UTF-8 is U+FFFD
	}, text)
	if len(text) <= most {
		return text
	}
	end := most
	for !utf8.RuneStart(text[end]) {
		end--
	}
	return text[:end]
}
