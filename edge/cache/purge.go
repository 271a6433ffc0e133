package cache

import (
	"net/url"
	"slices"
	"strings"
)

// Purge names responses to be forgotten, whether they are fresh or not (CloudFront: an invalidation).
type Purge struct {
	// Distribution is whose responses; empty: everyone's.
	Distribution string
	// Paths are as viewers write them, and compare with case: /a/b is that path, and with /a/b?x=1 also that query, as
	// far as it is in the key, in that order. A path without a query is the response without one. An asterisk at the
	// very end stands for anything: /a/* is all below /a/, /a/b* also every query of /a/b, /* everything. Elsewhere it
	// is an asterisk. All variants go, whatever header fields, cookies, scheme and host select them. How a path is
	// escaped makes no difference.
	Paths []string
}

// Purge forgets what the purge names and sees to it that nothing of it that is on its way is kept, or given to
// anyone who asks from now on. It returns how many responses were kept. It looks at everything that is kept, once, and
// holds up no hit.
func (c *Cache) Purge(p Purge) (objects int) {
	c.counts.purges.Add(1)
	m := p.matcher()
	outdate := func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.outdate(m.matches)
	}
	outdate()
	for slot, e := range c.stored.All() {
		if m.matches(slot) {
			c.stored.Invalidate(slot)
			if e.object != nil {
				objects++
			}
		}
	}
	outdate() // again: while we looked, one may have begun to validate what is gone now
	c.counts.purged.Add(uint64(objects))
	return objects
}

// matcher is a purge made ready: so many paths cost hardly more than one.
type matcher struct {
	distribution string
	exact        map[string]bool
	prefixes     []string // sorted, and none begins with another
}

func (p Purge) matcher() *matcher {
	m := &matcher{distribution: p.Distribution, exact: map[string]bool{}}
	for _, path := range p.Paths {
		path, wild := strings.CutSuffix(path, "*")
		before, query, has := strings.Cut(path, "?")
		if path = plain(before); has && (wild || query != "") {
			path += "?" + query
		}
		if wild {
			m.prefixes = append(m.prefixes, path)
		} else {
			m.exact[path] = true
		}
	}
	slices.Sort(m.prefixes)
	kept := m.prefixes[:0]
	for _, prefix := range m.prefixes {
		if len(kept) == 0 || !strings.HasPrefix(prefix, kept[len(kept)-1]) {
			kept = append(kept, prefix)
		}
	}
	m.prefixes = kept
	return m
}

// matches says whether a slot, or the URI of a key, is named.
func (m *matcher) matches(slot string) bool {
	distribution, rest, _ := cutPart(slot)
	if m.distribution != "" && distribution != m.distribution {
		return false
	}
	path, rest, _ := cutPart(rest)
	query, _, ok := cutPart(rest)
	if !ok {
		return false
	}
	if path = plain(path); query != "" {
		path += "?" + query
	}
	if m.exact[path] {
		return true
	}
	i, found := slices.BinarySearch(m.prefixes, path)
	return found || i > 0 && strings.HasPrefix(path, m.prefixes[i-1])
}

// plain is a path without escapes.
func plain(path string) string {
	if strings.IndexByte(path, '%') >= 0 {
		if p, err := url.PathUnescape(path); err == nil {
			return p
		}
	}
	return path
}

// SetFence begins a fence or ends it. A node that has missed a purge, and knows it, is fenced until it has made up for it: what
// was kept before the fence began is not used before the origin has said that it is still good, and does not cover up for an
// origin that fails. What comes while it stands is used as always. To set it again where it stands begins it anew: do so
// when another purge is known to be missing. To end it frees what is still kept, so the missed purges must have been made.
func (c *Cache) SetFence(fenced bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !fenced {
		c.fence.Store(0)
		return
	}
	c.era++
	c.fence.Store(c.era)
	c.outdate(func(string) bool { return true }) // what is on its way was asked for before
}
