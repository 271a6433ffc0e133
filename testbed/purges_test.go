package testbed

import (
	"context"
	"fmt"
	"io"
	"maps"
	"math"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/view"
	"github.com/perigee-net/perigee/node"
	"github.com/perigee-net/perigee/node/api"
)

// What is proven here, for each answer that a client gets. Each page has a version, which only rises. An order purges some pages right
// after they have become another version, and has a receipt.
//
//   - A node that a receipt names as having done the purge answers nothing older to whoever asks after the receipt.
//   - A node that it does not name answers nothing older once it is in contact with one that has the order's epoch: meetTime after the contact
//     began, and hearTime after the other has the epoch, whichever is later, whatever it cannot reach besides. Contact is that both live, and
//     that nothing is cut or lossy between the two.
//   - The same goes for soft purges, but that what the origin allows to be used stale may be, for as long as it allows, counted from the
//     purge; at a node that missed it, from when it has it. Until then it is said to be stale.
//   - When everything is healed and the nodes are one again, none of them answers anything older than any receipt.
//   - Each answer is of one version: a body is not put together from two, be it in slices, and what it says of itself (ETag) is its own.
//
// Nodes are killed and come back with what their disks have of before; disks refuse, are full, bring back what was not written, for a while.
//
// A node may refuse, or fail. It must not serve.
//
// A seed says who does what and what happens to whom. In which order goroutines run at one instant is not in it, so a schedule may have to be run
// some times until it fails again.

// purgedPage is what the origin has a version of. The host is empty where the distribution keeps one copy for all its hosts.
type purgedPage struct{ distribution, host, path string }

// Pages of the purged site. Those of /lax/ may be used stale for laxTime, those of /brief/ are fresh for a second, those of /large/ are kept in
// slices; distribution one keys the viewer's Host, two does not.
var (
	purgedPaths = []string{"/hour/0", "/hour/1", "/hour/0?x=1", "/lax/0", "/lax/1", "/brief/0", "/brief/1", "/large/0"}
	purgedHosts = map[string][]string{"one": {"a.one.test", "b.one.test"}, "two": {"two.test", "www.two.test"}}
)

const (
	laxTime = 4 * time.Second
	// meetTime is how long two nodes take to find each other again, hearTime how long it takes to hear of an epoch, with the grace of 1.5 s and
	// half a second in which this test looks.
	meetTime = 10 * time.Second
	hearTime = 2500 * time.Millisecond
	// farTime is how long packets of a severed node take longer.
	farTime = 700 * time.Millisecond
	// bodyLines is how often a body says its version, and largeLines how often a large one: it has a slice of 1 MiB, and some more.
	bodyLines  = 400
	largeLines = 140_000
	lineBytes  = 9
	// largeCache is the memory of a cache that keeps bodies over 1 MiB in slices, of which there is not room for all; largeDisk is a disk that
	// takes slices.
	largeCache = 8 << 20
	largeDisk  = 48 << 20
)

// linesOf is how often the body of a page says its version.
func linesOf(path string) int {
	if strings.HasPrefix(path, "/large/") {
		return largeLines
	}
	return bodyLines
}

func purgedPages() (all []purgedPage) {
	for _, path := range purgedPaths {
		for _, host := range purgedHosts["one"] {
			all = append(all, purgedPage{"one", host, path})
		}
		all = append(all, purgedPage{"two", "", path})
	}
	return all
}

func tagOf(path string) string {
	path, _, _ = strings.Cut(path, "?")
	return "t" + path[len(path)-1:]
}

const purgedSpec = `
kind: CachePolicy
name: by-host
headers: {behavior: whitelist, items: [Host, Accept-Language]}
queryStrings: {behavior: all}
---
kind: CachePolicy
name: by-path
queryStrings: {behavior: all}
---
kind: Distribution
name: one
aliases: [a.one.test, b.one.test]
errorCachingMinTTL: 1
cacheTagConfig: {headerName: Cache-Tag}
origins: [{name: own, url: "http://10.201.0.1", connectionTimeout: 1, connectionAttempts: 1, responseTimeout: 6%[1]s}]
defaultCacheBehavior: {targetOrigin: own, cachePolicy: by-host}
---
kind: Distribution
name: two
aliases: [two.test, www.two.test]
errorCachingMinTTL: 1
cacheTagConfig: {headerName: Cache-Tag}
origins: [{name: own, url: "http://10.201.0.1", hostHeader: two.origin, connectionTimeout: 1, connectionAttempts: 1, responseTimeout: 6%[1]s}]
defaultCacheBehavior: {targetOrigin: own, cachePolicy: by-path}
`

// purgedOrder is one order, and what became of it.
type purgedOrder struct {
	number  int // the version that it made of the pages that it names
	request api.PurgeRequest
	epoch   uint64
	receipt time.Duration // when it was there; 0: not yet, or it failed
	done    []string
}

// names says whether the order is about a page, as docs/orders.md has it.
func (o *purgedOrder) names(p purgedPage) bool {
	if o.request.Distribution != p.distribution || o.request.Host != "" && p.host != "" && o.request.Host != p.host {
		return false
	}
	return slices.ContainsFunc(o.request.Paths, func(item string) bool {
		if tag, is := strings.CutPrefix(item, "#"); is {
			return strings.EqualFold(tag, tagOf(p.path))
		}
		if prefix, is := strings.CutSuffix(item, "*"); is {
			return strings.HasPrefix(p.path, prefix)
		}
		return item == p.path
	})
}

func (o *purgedOrder) String() string {
	text := fmt.Sprintf("purge %d of %s", o.number, o.request.Distribution)
	if len(o.request.Paths) > 3 {
		text += fmt.Sprintf(" %v and %d more", o.request.Paths[:1], len(o.request.Paths)-1)
	} else {
		text += fmt.Sprint(" ", o.request.Paths)
	}
	if o.request.Host != "" {
		text += " at " + o.request.Host
	}
	if o.request.Soft {
		text += " softly"
	}
	return text
}

// purgedSite is the origin: it answers with the version that a page has when the request comes, however long it takes to say so.
type purgedSite struct {
	began time.Time

	mu       sync.Mutex
	version  map[purgedPage]int
	slow     time.Duration // before the head, and again in the middle of the body
	failing  bool
	requests int
}

func (s *purgedSite) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p := purgedPage{"one", r.Host, r.URL.RequestURI()}
	if r.Host == "two.origin" {
		p.distribution, p.host = "two", ""
	}
	s.mu.Lock()
	version, known := s.version[p]
	slow, failing := s.slow, s.failing
	s.requests++
	s.mu.Unlock()
	time.Sleep(slow)
	switch {
	case !known:
		w.WriteHeader(http.StatusNotFound)
		return
	case failing:
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	h := w.Header()
	control := "max-age=3600"
	switch {
	case strings.HasPrefix(p.path, "/lax/"):
		control += fmt.Sprintf(", stale-while-revalidate=%[1]d, stale-if-error=%[1]d", int(laxTime.Seconds()))
	case strings.HasPrefix(p.path, "/brief/"):
		control = "max-age=1"
	}
	h.Set("Cache-Control", control)
	h.Set("Cache-Tag", tagOf(p.path)+", every")
	h.Set("Vary", "Accept-Language")
	tag := fmt.Sprintf(`"%08d"`, version)
	h.Set("ETag", tag)
	if r.Header.Get("If-None-Match") == tag {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	body := versionBody(p.path, version)
	if strings.HasPrefix(p.path, "/large/") {
		http.ServeContent(w, r, "", time.Time{}, &slowBody{ReadSeeker: strings.NewReader(body), slow: slow})
		return
	}
	h.Set("Content-Length", strconv.Itoa(len(body)))
	io.WriteString(w, body[:len(body)/2])
	if slow > 0 {
		w.(http.Flusher).Flush()
		time.Sleep(slow)
	}
	io.WriteString(w, body[len(body)/2:])
}

// slowBody is a large body of which a little comes at once, and the rest after a while.
type slowBody struct {
	io.ReadSeeker
	slow  time.Duration
	reads int
}

func (b *slowBody) Read(p []byte) (int, error) {
	if b.reads++; b.reads == 2 {
		time.Sleep(b.slow)
	}
	return b.ReadSeeker.Read(p)
}

func versionBody(path string, version int) string {
	return strings.Repeat(fmt.Sprintf("%08d\n", version), linesOf(path))
}

// versionOf reads which version an answer is of, and holds it to be of one.
func versionOf(res *http.Response, method, path string, body []byte) (int, error) {
	tag, err := strconv.Atoi(strings.Trim(res.Header.Get("ETag"), `"`))
	if err != nil {
		return 0, fmt.Errorf("the ETag is %q", res.Header.Get("ETag"))
	}
	if method == http.MethodHead || res.StatusCode == http.StatusNotModified {
		return tag, nil
	}
	want := versionBody(path, tag)
	if res.StatusCode == http.StatusPartialContent {
		var first, last, size int
		if _, err := fmt.Sscanf(res.Header.Get("Content-Range"), "bytes %d-%d/%d", &first, &last, &size); err != nil || last >= len(want) || first > last {
			return 0, fmt.Errorf("the Content-Range is %q", res.Header.Get("Content-Range"))
		}
		want = want[first : last+1]
	}
	if string(body) != want {
		return 0, fmt.Errorf("%d bytes that are not those of version %d: %.30q", len(body), tag, body)
	}
	return tag, nil
}

// contacts is between whom there has been contact, and since when.
type contacts struct {
	names []string
	dead  map[string]bool
	apart map[string]bool // nothing comes or goes
	bad   map[[2]string]bool
	since map[[2]string]time.Duration // of pairs that are in contact
}

func pairOf(a, b string) [2]string { return [2]string{min(a, b), max(a, b)} }

// look takes note of what has changed by now.
func (c *contacts) look(now time.Duration) {
	for i, a := range c.names {
		for _, b := range c.names[:i] {
			pair := pairOf(a, b)
			good := !c.dead[a] && !c.dead[b] && !c.apart[a] && !c.apart[b] && !c.bad[pair]
			if _, was := c.since[pair]; good && !was {
				c.since[pair] = now
			} else if !good {
				delete(c.since, pair)
			}
		}
	}
}

// purgesRun is one schedule.
type purgesRun struct {
	f     *Fleet
	site  *purgedSite
	began time.Time
	story func(string, ...any)

	mu       sync.Mutex
	orders   []*purgedOrder
	contacts contacts
	epochs   map[string][]epochSeen // of each node, while it lives
	severed  [2]string              // two nodes between which there is silence until the end; empty: none
	tally    map[string]int
	faults   []string
}

// epochSeen is the epoch that a node has since.
type epochSeen struct {
	epoch uint64
	since time.Duration
}

func (r *purgesRun) now() time.Duration { return time.Since(r.began) }

func (r *purgesRun) fault(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.faults = append(r.faults, fmt.Sprintf("%8v ", r.now().Round(time.Millisecond))+fmt.Sprintf(format, args...))
}

// need is the least version of a page that a node may answer to a request that it gets at a time, and by which order; soft is the least
// that it may answer as fresh.
func (r *purgesRun) need(node string, p purgedPage, at time.Duration) (need, soft int, by *purgedOrder, why string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	lax := strings.HasPrefix(p.path, "/lax/")
	for _, o := range r.orders {
		if o.receipt == 0 || at <= o.receipt || o.number <= need || !o.names(p) {
			continue
		}
		reason, made := "the receipt names it", o.receipt
		if !slices.Contains(o.done, node) {
			made = r.has(node, o.epoch)
			other, since := r.told(node, o)
			if other == "" || at < since {
				continue
			}
			reason = fmt.Sprintf("it is in contact with %s, which has epoch %d, and must know of it since %v", other, o.epoch, since)
		}
		soft = max(soft, o.number)
		if o.request.Soft && lax && (made == 0 || at < made+laxTime) {
			continue
		}
		need, by, why = o.number, o, reason
	}
	return need, soft, by, why
}

// has is since when a node has an epoch, as far as was looked; 0: it has not. r.mu is held.
func (r *purgesRun) has(node string, epoch uint64) time.Duration {
	for _, seen := range r.epochs[node] {
		if seen.epoch >= epoch {
			return seen.since
		}
	}
	return 0
}

// told is from when a node must know of an order, by another that has its epoch; "": there is none. r.mu is held.
func (r *purgesRun) told(node string, o *purgedOrder) (other string, since time.Duration) {
	for _, name := range r.f.Names {
		contact, is := r.contacts.since[pairOf(node, name)]
		has := r.has(name, o.epoch)
		if name == node || !is || has == 0 {
			continue
		}
		if from := max(contact+meetTime, has+hearTime); other == "" || from < since {
			other, since = name, from
		}
	}
	return other, since
}

// watch takes note of the nodes' epochs until the context ends.
func (r *purgesRun) watch(ctx context.Context) {
	for ctx.Err() == nil {
		for _, name := range r.f.Names {
			var epoch uint64
			fenced := false
			if c := r.f.Inside(name); c != nil {
				if list, err := c.OrdersAfter(ctx, math.MaxInt64); err == nil {
					epoch = list.Epoch
					fenced = list.Fenced
				}
			}
			r.mu.Lock()
			if fenced {
				r.tally["a node was fenced when it was looked at"]++
			}
			seen := r.epochs[name]
			switch {
			case epoch == 0:
				r.epochs[name] = nil
			case len(seen) == 0 || epoch > seen[len(seen)-1].epoch:
				r.epochs[name] = append(seen, epochSeen{epoch, r.now()})
			}
			r.mu.Unlock()
		}
		time.Sleep(250 * time.Millisecond)
	}
}

// asks has a client ask a node until the context ends.
func (r *purgesRun) asks(ctx context.Context, node string, chance *rand.Rand) {
	n := r.f.nodes[node]
	transport := &http.Transport{DialContext: r.f.clients[n.cfg.Region].Dial, DisableCompression: true}
	defer transport.CloseIdleConnections()
	pages, last := purgedPages(), map[purgedPage]string{}
	for ctx.Err() == nil {
		p := pages[chance.IntN(len(pages))]
		if large := strings.HasPrefix(p.path, "/large/"); large && chance.IntN(3) > 0 {
			continue // they take their time
		}
		req, _ := http.NewRequest(http.MethodGet, "http://"+n.cfg.HTTP+p.path, nil) // of constants
		req.Host = p.host
		if p.host == "" {
			req.Host = purgedHosts["two"][chance.IntN(2)]
		}
		req.Header.Set("Accept-Language", []string{"en", "ko"}[chance.IntN(2)])
		kind := "GET"
		what, size, length := chance.IntN(8), linesOf(p.path)*lineBytes, 100
		if linesOf(p.path) == largeLines {
			if length = size; what > 2 && chance.IntN(4) > 0 {
				what, length = 1, 10_000
			}
		}
		switch what {
		case 0:
			kind, req.Method = "HEAD", http.MethodHead
		case 1:
			first := chance.IntN(size)
			kind = "Range"
			req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", first, min(size-1, first+chance.IntN(length))))
		case 2:
			if tag := last[p]; tag != "" {
				kind = "If-None-Match"
				req.Header.Set("If-None-Match", tag)
			}
		}
		if linesOf(p.path) == largeLines {
			kind += " in slices"
		}
		patience := 8 * time.Second
		if chance.IntN(6) == 0 {
			patience = time.Duration(chance.Int64N(int64(400 * time.Millisecond))) // it leaves before all is there, at times
		}
		limited, cancel := context.WithTimeout(ctx, patience)
		if tag := r.askOnce(transport, req.WithContext(limited), node, kind, p); tag != "" {
			last[p] = tag
		}
		cancel()
		time.Sleep(time.Duration(chance.Int64N(int64(160 * time.Millisecond))))
	}
}

// askOnce asks, and judges the answer. It returns its ETag.
func (r *purgesRun) askOnce(transport *http.Transport, req *http.Request, node, kind string, p purgedPage) (tag string) {
	asked := r.now()
	need, soft, by, why := r.need(node, p, asked)
	count := func(what string) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.tally[what]++
	}
	res, err := transport.RoundTrip(req)
	if err != nil {
		count("no answer")
		return ""
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	switch {
	case err != nil:
		count("cut short")
		return ""
	case res.StatusCode >= 400:
		count(fmt.Sprint(res.StatusCode))
		return ""
	}
	version, err := versionOf(res, req.Method, p.path, body)
	told := strings.Join(res.Header.Values("Cache-Status"), ", ")
	if err != nil {
		r.fault("%s answers %s %s%s: %d %v: %s", node, kind, req.Host, p.path, res.StatusCode, err, told)
		return ""
	}
	own := told[strings.LastIndex(told, ", ")+1:] // what this node itself says
	switch {
	case version < need:
		r.fault("%s, asked at %v, answers %s %s%s with version %d, and %v (receipt at %v, epoch %d, done by %v) wants %d, for %s: %d %s", node, asked, kind, req.Host, p.path,
			version, by, by.receipt, by.epoch, by.done, need, why, res.StatusCode, told)
	case version < soft && strings.Contains(own, "; hit") && !strings.Contains(own, "ttl=-") && !strings.Contains(own, "ttl=0"):
		r.fault("%s, asked at %v, answers %s %s%s with version %d as fresh, which was purged softly when it became %d: %s", node, asked, kind, req.Host, p.path, version, soft, told)
	case version < soft:
		count("stale, as the origin allows")
	case need > 0:
		count(kind + ", of a page that was purged")
	default:
		count(kind)
	}
	if strings.Contains(own, "detail=slices") && strings.Contains(own, "; hit") {
		count("a hit in slices")
	}
	r.missed(node, p, version, asked)
	return res.Header.Get("ETag")
}

// missed takes note of what a node that missed a purge answered meanwhile.
func (r *purgesRun) missed(node string, p purgedPage, version int, asked time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, o := range r.orders {
		if o.receipt == 0 || asked <= o.receipt || version >= o.number || o.request.Soft || !o.names(p) || slices.Contains(o.done, node) {
			continue
		}
		r.tally["older, of a node that missed the purge"]++
		return
	}
}

// purges has an operator publish and purge until the context ends.
func (r *purgesRun) purges(ctx context.Context, chance *rand.Rand) {
	for ctx.Err() == nil {
		node := r.f.Names[chance.IntN(len(r.f.Names))]
		req := api.PurgeRequest{Distribution: []string{"one", "two"}[chance.IntN(2)], Soft: chance.IntN(3) == 0}
		hosts, kind := purgedHosts[req.Distribution], chance.IntN(7)
		if r.severed[0] != "" && chance.IntN(2) == 0 {
			node, kind = r.severed[0], 4
		}
		switch kind {
		case 0:
			req.Paths = []string{"/*"}
		case 1:
			req.Paths = []string{[]string{"/hour/*", "/lax/*", "/hour/0*", "/brief/*", "/large/*"}[chance.IntN(5)]}
		case 2:
			req.Paths = []string{"#" + []string{"t0", "T1"}[chance.IntN(2)]}
		case 3:
			req.Paths, req.Host = []string{"/*"}, hosts[chance.IntN(2)]
		case 4, 5: // too long to be repeated by what the node says of itself
			req.Paths = []string{purgedPaths[chance.IntN(len(purgedPaths))]}
			for i := range 300 {
				req.Paths = append(req.Paths, fmt.Sprint("/nothing/is/there/", i))
			}
		default:
			req.Paths = []string{purgedPaths[chance.IntN(len(purgedPaths))], purgedPaths[chance.IntN(len(purgedPaths))]}
		}
		r.order(ctx, node, req)
		time.Sleep(200*time.Millisecond + time.Duration(chance.Int64N(int64(2500*time.Millisecond))))
	}
}

// order publishes what a purge names, and purges it.
func (r *purgesRun) order(ctx context.Context, node string, req api.PurgeRequest) {
	r.mu.Lock()
	o := &purgedOrder{number: len(r.orders) + 1, request: req}
	o.request.ID = fmt.Sprint("purge-", o.number)
	r.orders = append(r.orders, o)
	r.site.publish(o)
	r.mu.Unlock()
	limited, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	began := r.now()
	res, err := r.f.API(node).Purge(limited, o.request)
	if err != nil {
		r.story("%v@%s from %v: %v", o, node, began.Round(time.Millisecond), err)
		return
	}
	r.story("%v@%s from %v: %s", o, node, began.Round(time.Millisecond), receipt(res))
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, a := range res.Acks {
		if a.Error == "" {
			o.done = append(o.done, a.Node)
		}
	}
	o.epoch, o.receipt = res.Epoch, r.now()
	r.tally["receipts"]++
	if len(o.done) < len(r.f.Names) {
		r.tally["receipts that do not name all"]++
	}
}

// publish makes the pages that an order names another version.
func (s *purgedSite) publish(o *purgedOrder) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for p := range s.version {
		if o.names(p) {
			s.version[p] = o.number
		}
	}
}

// mishaps does to the nodes, their links and clocks and to the origin whatever chance has in store, until the context ends.
func (r *purgesRun) mishaps(ctx context.Context, chance *rand.Rand, pace time.Duration) {
	f, c := r.f, &r.contacts
	pick := func() string { return f.Names[chance.IntN(len(f.Names))] }
	does := func(note func(), format string, args ...any) {
		r.story(format, args...)
		r.mu.Lock()
		defer r.mu.Unlock()
		note()
		c.look(r.now())
	}
	for ctx.Err() == nil {
		name, other := pick(), pick()
		if chance.IntN(4) == 0 {
			if leader := f.Leader(ctx); leader != "" {
				name = leader
			}
		}
		switch n := chance.IntN(28); {
		case n < 4 && f.Lives(name):
			does(func() { c.dead[name] = true }, "%s %s", []string{"kill", "kill", "crash", "stop"}[n], name)
			switch n {
			case 2:
				f.Crash(name)
			case 3:
				f.Stop(name)
			default:
				f.Kill(name)
			}
		case n < 8:
			for _, dead := range f.Names {
				if f.Lives(dead) || chance.IntN(2) == 0 {
					continue
				}
				r.story("start %s", dead)
				if err := f.Start(ctx, dead); err != nil {
					r.story("!%v", err)
					continue
				}
				does(func() { delete(c.dead, dead) }, "%s is there", dead)
			}
		case n < 9:
			does(func() { c.apart[name] = true }, "pause %s", name)
			f.Pause(name)
		case n < 11: // from the others, and not from clients and the origin
			does(func() { c.apart[name] = true }, "alone: %s", name)
			f.Split(name)
		case n < 13 && name != other:
			does(func() { c.bad[pairOf(name, other)] = true }, "cut %s %s", name, other)
			f.Cut(name, other)
		case n < 15 && name != other:
			does(func() { c.bad[pairOf(name, other)] = true }, "cut one way %s %s", name, other)
			f.CutOneWay(name, other)
		case n < 16 && name != other:
			does(func() { c.bad[pairOf(name, other)] = true }, "lossy %s %s", name, other)
			f.Lossy(name, other, 0.2)
		case n < 17:
			r.story("%s does not reach the origin", name)
			f.in.Cut(name, "origin")
		case n < 19:
			f.HealAll()
			for _, name := range f.Names {
				f.in.Heal(name, "origin")
				f.Disk(name, DiskWhole)
			}
			does(func() { clear(c.apart); clear(c.bad) }, "heal")
			r.sever()
		case n < 22:
			r.site.mu.Lock()
			r.site.slow, r.site.failing = time.Duration(chance.Int64N(int64(3*time.Second))), chance.IntN(4) == 0
			if chance.IntN(3) == 0 {
				r.site.slow = 0
			}
			r.story("the origin takes %v, fails: %v", r.site.slow, r.site.failing)
			r.site.mu.Unlock()
		case n < 23 && f.Lives(name):
			does(func() { c.dead[name] = true; r.tally["a restart"]++ }, "restart %s", name)
			f.Kill(name)
			if err := f.Start(ctx, name); err != nil {
				r.story("!%v", err)
				continue
			}
			does(func() { delete(c.dead, name) }, "%s is there", name)
		case n < 26 && f.nodes[name].cfg.CacheDiskBytes > 0:
			fault := DiskFault(1 + chance.IntN(int(DiskLies)))
			does(func() { r.tally["a disk failed"]++ }, "disk of %s %v", name, fault)
			f.Disk(name, fault)
		default:
			by := time.Duration(chance.Int64N(int64(2*24*time.Hour))) - 24*time.Hour
			r.story("clock of %s %v", name, by)
			f.Jump(name, by)
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration(chance.Int64N(int64(pace)))):
		}
	}
}

// sever has silence between the two nodes that are to be so for the whole of the schedule. The second is far from all others: it takes some
// seconds to get from them what it does not get from the first, and hears sooner that there is something.
func (r *purgesRun) sever() {
	if r.severed[0] == "" {
		return
	}
	r.story("cut %s %s, for good", r.severed[0], r.severed[1])
	r.f.Cut(r.severed[0], r.severed[1])
	for _, name := range r.f.Names {
		if name != r.severed[1] {
			r.f.in.Slow(name, r.severed[1], farTime)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.contacts.bad[pairOf(r.severed[0], r.severed[1])] = true
	r.contacts.look(r.now())
}

const (
	purgesTime = 25 * time.Second // of mishaps, in each schedule
	warmTime   = 3 * time.Second  // before, in which clients ask
)

// purgesSchedule runs one seed.
func purgesSchedule(ctx context.Context, dir string, seed uint64, story func(string, ...any)) (r *purgesRun) {
	chance := rand.New(rand.NewPCG(seed, 11))
	together, shield := seed%3 > 0, seed%3 == 2
	cfg := FleetConfig{Dir: dir, Seed: seed, Nodes: 4 + chance.IntN(3), Regions: 1 + chance.IntN(3), Voters: 3 + chance.IntN(3)}
	cfg.Tune = func(c *node.Config) {
		c.HTTP = netip.AddrPortFrom(c.Advertise, httpPort).String()
		if together {
			c.POP = c.Region
		}
		c.CacheBytes = largeCache
		if seed%2 == 1 {
			c.CacheDiskBytes = largeDisk
		}
	}
	began := time.Now()
	r = &purgesRun{
		began: began, tally: map[string]int{}, epochs: map[string][]epochSeen{},
		contacts: contacts{dead: map[string]bool{}, apart: map[string]bool{}, bad: map[[2]string]bool{}, since: map[[2]string]time.Duration{}},
		site:     &purgedSite{began: began, version: map[purgedPage]int{}, slow: time.Duration(chance.IntN(200)) * time.Millisecond},
		story: func(format string, args ...any) {
			story("%8v %s", time.Since(began).Round(time.Millisecond), fmt.Sprintf(format, args...))
		},
	}
	for _, p := range purgedPages() {
		r.site.version[p] = 0
	}
	f, err := NewFleet(ctx, cfg)
	if err != nil {
		r.fault("%v", err)
		return r
	}
	defer f.Close()
	r.f, r.contacts.names = f, f.Names
	origin := f.in.Host("origin", spec.Location{Latitude: 50.11, Longitude: 8.68}, netip.MustParseAddr("10.201.0.1"))
	l, err := origin.Listen("tcp", ":80")
	if err != nil {
		r.fault("%v", err)
		return r
	}
	server := &http.Server{Handler: r.site}
	var all sync.WaitGroup
	all.Go(func() { server.Serve(l) })
	defer all.Wait()
	defer server.Close()
	if err := r.begin(ctx, shield); err != nil {
		r.fault("begin: %v", err)
		return r
	}
	story("%d nodes %v, together in POPs: %v, origin shield: %v", len(f.Names), f.Names, together, shield)

	if seed%4 == 3 { // Raft comes from the leader alone: a voter that it cannot reach hears of orders, and does not get them
		leader := f.Leader(ctx)
		for _, name := range f.Names {
			if leader != "" && name != leader && slices.Contains(f.nodes[name].cfg.Roles, view.Voter) {
				r.severed = [2]string{leader, name}
			}
		}
		r.sever()
	}
	asking, quiet := context.WithCancel(ctx)
	var clients sync.WaitGroup
	clients.Go(func() { r.watch(asking) })
	for i, name := range f.Names {
		for j := range 2 {
			own := rand.New(rand.NewPCG(seed, uint64(100+10*i+j)))
			clients.Go(func() { r.asks(asking, name, own) })
		}
	}
	time.Sleep(warmTime)
	trouble, over := context.WithTimeout(ctx, purgesTime)
	var troubles sync.WaitGroup
	for i := range 2 {
		own := rand.New(rand.NewPCG(seed, uint64(50+i)))
		troubles.Go(func() { r.purges(trouble, own) })
	}
	pace := []time.Duration{1500, 3000, 6000}[seed/3%3] * time.Millisecond
	if r.severed[0] != "" {
		pace = 12 * time.Second
	}
	r.mishaps(trouble, chance, pace)
	over()
	troubles.Wait()
	r.end(ctx)
	quiet()
	clients.Wait()
	return r
}

// begin waits until the nodes serve the site.
func (r *purgesRun) begin(ctx context.Context, shield bool) error {
	text := ""
	if shield {
		text = ", originShield: {enabled: true, originShieldRegion: ap-northeast-2}"
	}
	yaml := fmt.Sprintf(purgedSpec, text)
	if shield {
		yaml += "---\nkind: Region\nname: ap-northeast-2\n"
	}
	for deadline := time.Now().Add(settled); ; time.Sleep(again) {
		_, err := r.f.API(r.f.Names[0]).Apply(ctx, api.ApplyRequest{ID: "site", Files: []api.File{{Name: "site.yaml", Data: yaml}}})
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			return err
		}
	}
	if err := r.f.Agree(ctx, settled); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.contacts.look(r.now() - meetTime) // they have met
	return nil
}

// end heals everything, and holds all nodes to the newest receipts.
func (r *purgesRun) end(ctx context.Context) {
	f := r.f
	r.story("all is healed")
	for _, name := range f.Names {
		if r.severed[0] != "" && name != r.severed[1] {
			f.in.Slow(name, r.severed[1], 0)
		}
	}
	r.severed = [2]string{}
	f.HealAll()
	r.site.mu.Lock()
	r.site.slow, r.site.failing = 0, false
	r.site.mu.Unlock()
	for _, name := range f.Names {
		f.in.Heal(name, "origin")
		f.Disk(name, DiskWhole)
		f.Jump(name, 0)
		if !f.Lives(name) {
			if err := f.Start(ctx, name); err != nil {
				r.fault("%v", err)
			}
		}
	}
	r.mu.Lock()
	clear(r.contacts.dead)
	clear(r.contacts.apart)
	clear(r.contacts.bad)
	r.contacts.look(r.now())
	r.mu.Unlock()
	time.Sleep(meetTime + hearTime) // the clients go on
	if err := f.Agree(ctx, linearRest); err != nil {
		r.fault("it does not become one again: %v", err)
		return
	}
	var failed []*purgedOrder
	r.mu.Lock()
	for _, o := range r.orders { // from now on it is all of them
		if o.receipt > 0 {
			o.done = f.Names
		} else {
			failed = append(failed, o)
		}
	}
	r.mu.Unlock()
	for _, name := range f.Names {
		n := f.nodes[name]
		transport := &http.Transport{DialContext: f.clients[n.cfg.Region].Dial, DisableCompression: true}
		for _, p := range purgedPages() {
			req, _ := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+n.cfg.HTTP+p.path, nil) // of constants
			if req.Host = p.host; p.host == "" {
				req.Host = "two.test"
			}
			tries := 1
			if linesOf(p.path) == largeLines && slices.ContainsFunc(failed, func(o *purgedOrder) bool { return o.names(p) }) {
				tries = 2 // it may have changed unpurged: then its first answer is cut off, and it is forgotten
			}
			for tries > 0 && r.askOnce(transport, req, name, "GET", p) == "" {
				tries--
			}
			if tries == 0 {
				r.fault("in the end %s does not answer %s%s", name, req.Host, p.path)
			}
		}
		transport.CloseIdleConnections()
		if list, err := f.Inside(name).Orders(ctx); err != nil || list.Fenced {
			r.fault("in the end %s is fenced: %v %v", name, list.Fenced, err)
		}
	}
}

// enoughSchedules is from how many on all that is to be tried must have happened.
const enoughSchedules = 20

// Whatever happens to nodes, links, clocks and origins: after the receipt nobody is served anything older.
func TestAfterTheReceiptNobodyIsServedAnythingOlder(t *testing.T) {
	t.Parallel()
	tally := map[string]int{}
	all := seeds(t, 3) // each kind of schedule once
	for _, seed := range all {
		dir := t.TempDir()
		var r *purgesRun
		var mu sync.Mutex
		var told []string
		synctest.Test(t, func(t *testing.T) {
			r = purgesSchedule(t.Context(), dir, seed, func(format string, args ...any) {
				mu.Lock()
				defer mu.Unlock()
				told = append(told, fmt.Sprintf(format, args...))
			})
		})
		os.RemoveAll(dir)
		for what, n := range r.tally {
			tally[what] += n
		}
		if testing.Verbose() && len(all) == 1 {
			t.Log(strings.Join(told, "\n"))
		}
		if len(r.faults) > 0 {
			t.Errorf("PERIGEE_SEED=%d: %d faults\n%s\n%s", seed, len(r.faults), strings.Join(r.faults[:min(len(r.faults), 10)], "\n"), strings.Join(told, "\n"))
		}
	}
	for _, what := range slices.Sorted(maps.Keys(tally)) {
		t.Logf("%8d %s", tally[what], what)
	}
	for _, what := range []string{"receipts that do not name all", "GET, of a page that was purged", "Range, of a page that was purged", "stale, as the origin allows",
		"GET in slices, of a page that was purged", "Range in slices, of a page that was purged", "a hit in slices", "a disk failed", "a restart"} {
		if tally[what] == 0 && len(all) >= enoughSchedules {
			t.Errorf("there was no %q: the schedules show too little", what)
		}
	}
}
