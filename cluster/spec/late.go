package spec

import (
	"fmt"
	"strings"
)

// lateFault is a fault by a rule that earlier releases did not have: in which field, its places in lists left out, and of what.
type lateFault struct{ field, value string }

// late tells a fault of a field's value by such a rule. What earlier releases took stays, and no change is refused for it that does not edit it: what is
// agreed already is not judged, nor what is judged again for another's sake, nor what the resource has as often as it had it, wherever in its lists.
func (c check) late(field string, value any, format string, args ...any) {
	key := lateFault{bare(field), fmt.Sprint(value)}
	switch {
	case c.o.Stored || c.document >= len(c.resources):
		return
	case c.noted != nil:
		c.noted[key]++
		return
	}
	stood := c.stood(c.document)
	if stood[key] > 0 {
		stood[key]--
		return
	}
	c.fault(field, format, args...)
}

// stood is how often what a document takes the place of has each late fault. It is counted down as they are met.
func (b *builder) stood(document int) map[lateFault]int {
	if stood, ok := b.stands[document]; ok {
		return stood
	}
	old := &builder{
		base: b.base, spec: b.base, docs: b.docs[document : document+1 : document+1], resources: make([]any, 1), noted: map[lateFault]int{},
	}
	switch was := b.before(document).(type) {
	case *HostedZone: // of its records, which may be very many, there are no such faults
		check{old, 0}.transfer(&was.Transfer)
		check{old, 0}.secondary(was)
	default:
		none := newClaims()
		check{old, 0}.resource(was, &none)
	}
	if b.stands == nil {
		b.stands = map[int]map[lateFault]int{}
	}
	b.stands[document] = old.noted
	return old.noted
}

// before is what a document takes the place of; nil: it is new.
func (b *builder) before(document int) any {
	if kind, ok := exactKind(b.docs[document].Kind); ok {
		if was, there := kind.get(b.base, b.docs[document].Name); there {
			return was
		}
	}
	return nil
}

// bare is a path without the places in lists: listeners.endpointGroups.endpoints.address.
func bare(field string) string {
	var b strings.Builder
	for {
		before, after, found := strings.Cut(field, "[")
		b.WriteString(before)
		if !found {
			return b.String()
		}
		_, field, _ = strings.Cut(after, "]")
	}
}
