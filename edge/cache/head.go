package cache

import (
	"net/http"
	"slices"
	"time"
)

// Validates says whether the origin can be asked if the response is still good: it carries a validator.
func (o *Object) Validates() bool { return conditions(o) != nil }

// Headed takes note of the 200 that the origin sent to a HEAD for what was found (RFC 9111 §4.3.5): what is kept is fresh
// anew if it is the same by what the header says, and forgotten if it is another.
func (c *Cache) Headed(w Want, found Found, h http.Header, requested time.Time) {
	if found.Object == nil {
		return
	}
	defer c.shelf.writeOut(found.slot)
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if c.find(w.Key, w.Policy, w.Header, now, nil, false) != found {
		return // it is another by now
	}
	switch o, other := found.Object.headed(w.Policy, h, found.Object.Size(), requested, now); {
	case other, o != nil && !slices.Equal(o.more().vary, found.Object.more().vary): // or is selected by other fields, and so not here
		c.stored.Invalidate(found.slot)
		c.shelf.forget(found.slot)
	case o != nil:
		c.put(found.slot, (&entry{object: o}).mark(renewal), 0)
	}
}
