package roster

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Kinds of orders.
const (
	OrderPurge   = "purge"
	OrderBlock   = "block"
	OrderUnblock = "unblock"
	OrderDrain   = "drain"
	OrderUndrain = "undrain"
)

// What can be drained.
const (
	ScopeNode   = "node"
	ScopePOP    = "pop"
	ScopeRegion = "region"
)

// Bounds of one order. Those of paths are CloudFront's ("Invalidate files", CloudFront Developer Guide).
const (
	MaxOrder     = 64 << 10 // bytes as EncodeOrder writes it: it must reach every node in one go
	maxPaths     = 3000
	maxPath      = 4000 // characters
	maxReason    = 256  // bytes
	maxAuthor    = 255  // bytes, as the store has it
	maxOrderID   = 64
	maxOrderLife = 366 * 24 * time.Hour
)

// Order is what is to take effect on every node at once: it is told to all of them directly, and agreed as records
// meanwhile. Which fields have a meaning goes by the kind; the others are empty.
type Order struct {
	ID   string    `json:"id"` // 1–64 of A–Z, a–z, 0–9, - and _; of the change that makes it agreed, too
	Kind string    `json:"kind"`
	Time time.Time `json:"time"` // when it was given, by the clock of the node that was asked

	// Purge.
	Distribution string   `json:"distribution,omitempty"`
	Paths        []string `json:"paths,omitempty"` // begin with /, where * may stand at the end for any text; or #, and name a cache tag
	Host         string   `json:"host,omitempty"`  // only what is kept for this host of the distribution, in lower case
	Soft         bool     `json:"soft,omitempty"`  // what is kept is stale from then on, where else it is forgotten

	// Block and unblock.
	CIDRs []netip.Prefix `json:"cidrs,omitempty"`
	Force bool           `json:"force,omitempty"` // a block may be of all addresses

	// Drain and undrain.
	Scope string `json:"scope,omitempty"` // node, pop or region
	Name  string `json:"name,omitempty"`

	Until  time.Time `json:"until,omitzero"` // when a block or a drain ends, by the same clock as Time; zero: when it is undone
	Reason string    `json:"reason,omitempty"`
	Author string    `json:"author,omitempty"`
}

// Names says what exists beside the recorded nodes; what is nil knows of nothing.
type Names struct {
	Distribution, Node, POP, Region func(name string) bool
}

// String is the order in a line, for people.
func (o Order) String() string {
	s := o.Kind
	switch o.Kind {
	case OrderPurge:
		s = fmt.Sprintf("%s of %s: %s", purgeWord(o.Soft), o.Distribution, listed(shortened(o.Paths)))
		if o.Host != "" {
			s += " at " + o.Host
		}
	case OrderBlock, OrderUnblock:
		var all []string
		for _, p := range o.CIDRs {
			all = append(all, p.String())
		}
		s += " " + listed(all)
	case OrderDrain, OrderUndrain:
		s += " " + o.Scope + " " + o.Name
	}
	if !o.Until.IsZero() {
		s += " for " + o.Until.Sub(o.Time).String()
	}
	if o.Reason != "" {
		s += ": " + o.Reason
	}
	return s
}

func purgeWord(soft bool) string {
	if soft {
		return "soft purge"
	}
	return "purge"
}

// shortened are texts of which each fits in a line beside others.
func shortened(texts []string) []string {
	const most = 60
	short := slices.Clone(texts)
	for i, s := range short {
		if len(s) > most {
			short[i] = s[:most] + "…"
		}
	}
	return short
}

// EncodeOrder writes an order as the lane, reports and files carry it. An order that Validate refuses may come out as
// bytes that DecodeOrder refuses.
func EncodeOrder(o Order) []byte {
	o.Time, o.Until = o.Time.UTC().Round(0), o.Until.UTC().Round(0)
	b, err := json.Marshal(o)
	if err != nil { // a year that no text has room for
		return nil
	}
	return b
}

// DecodeOrder reads an order, exactly as EncodeOrder writes it. A field that is not known here is an error: a node that
// passed it over would do something else than it was told. What exists is not asked: see Validate.
func DecodeOrder(b []byte) (Order, error) {
	if len(b) > MaxOrder {
		return Order{}, fmt.Errorf("decode order: %d bytes, want at most %d", len(b), MaxOrder)
	}
	var o Order
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&o); err != nil {
		return Order{}, fmt.Errorf("decode order: %w", err)
	}
	if err := o.check(); err != nil {
		return Order{}, fmt.Errorf("decode order: %w", err)
	}
	if !bytes.Equal(EncodeOrder(o), b) {
		return Order{}, errors.New("decode order: it is not written as orders are")
	}
	return o, nil
}

// Validate says what is wrong with an order that a user gives: what it says, and whether what it names exists by this
// roster or by names. Whether it changes anything is for Order to say, at the leader.
func (o Order) Validate(r *Roster, names Names) error {
	if err := o.check(); err != nil {
		return fmt.Errorf("%s: %w", cmp.Or(o.Kind, "order"), err)
	}
	switch o.Kind {
	case OrderPurge:
		if !known(names.Distribution, o.Distribution) {
			return fmt.Errorf("purge: there is no distribution %s", o.Distribution)
		}
	case OrderDrain:
		if !r.has(o.Scope, o.Name) && !known(names.in(o.Scope), o.Name) {
			return fmt.Errorf("drain: there is no %s %s", o.Scope, o.Name)
		}
	}
	return nil
}

func known(names func(string) bool, name string) bool { return names != nil && names(name) }

func (n Names) in(scope string) func(string) bool {
	switch scope {
	case ScopeNode:
		return n.Node
	case ScopePOP:
		return n.POP
	}
	return n.Region
}

// has says whether a node is recorded, or one in the POP or the region. One may have moved since it joined, which is not
// recorded: those who live say where they are.
func (r *Roster) has(scope, name string) bool {
	if scope == ScopeNode {
		return r.Nodes[name] != nil
	}
	for _, n := range r.Nodes {
		if scope == ScopePOP && n.POP == name || scope == ScopeRegion && n.Region == name {
			return true
		}
	}
	return false
}

// check is what can be said of an order by itself.
func (o Order) check() error {
	switch {
	case !isOrderID(o.ID):
		return fmt.Errorf("id %.80q: want 1–%d of A–Z, a–z, 0–9, - and _", o.ID, maxOrderID)
	case o.Time.IsZero():
		return errors.New("no time")
	case len(o.Author) > maxAuthor || !isPlain(o.Author):
		return fmt.Errorf("author: want at most %d bytes of plain text", maxAuthor)
	case len(o.Reason) > maxReason || !isPlain(o.Reason):
		return fmt.Errorf("reason: want at most %d bytes of plain text", maxReason)
	}
	if err := o.checkKind(); err != nil {
		return err
	}
	if n := len(EncodeOrder(o)); n == 0 {
		return errors.New("a time that cannot be written")
	} else if n > MaxOrder {
		return fmt.Errorf("it takes %d bytes: at most %d, so make several of it", n, MaxOrder)
	}
	return nil
}

func (o Order) checkKind() error {
	purges := o.Distribution != "" || o.Paths != nil || o.Host != "" || o.Soft
	blocks := o.CIDRs != nil || o.Force
	drains := o.Scope != "" || o.Name != ""
	timed := !o.Until.IsZero()
	switch o.Kind {
	case OrderPurge:
		if blocks || drains || timed {
			return errors.New("a purge has a distribution, paths and a host, and nothing else")
		}
		return o.checkPurge()
	case OrderBlock:
		if purges || drains {
			return errors.New("a block has CIDRs and an end, and nothing else")
		}
		return errors.Join(o.checkCIDRs(), o.checkUntil())
	case OrderUnblock:
		if purges || drains || timed || o.Force {
			return errors.New("an unblock has CIDRs, and nothing else")
		}
		return o.checkCIDRs()
	case OrderDrain:
		if purges || blocks {
			return errors.New("a drain has a scope, a name and an end, and nothing else")
		}
		return errors.Join(o.checkScope(), o.checkUntil())
	case OrderUndrain:
		if purges || blocks || timed {
			return errors.New("an undrain has a scope and a name, and nothing else")
		}
		return o.checkScope()
	}
	return fmt.Errorf("kind %.80q: want %s, %s, %s, %s or %s", o.Kind, OrderPurge, OrderBlock, OrderUnblock, OrderDrain, OrderUndrain)
}

func (o Order) checkPurge() error {
	switch {
	case o.Distribution == "" || len(o.Distribution) > maxAuthor || !isPlain(o.Distribution):
		return fmt.Errorf("distribution: want the name of one")
	case len(o.Paths) == 0:
		return errors.New("no path and no #tag: /* is for all of them")
	case o.Host != "" && !isHost(o.Host):
		return fmt.Errorf("host: %.80q: want the name of one, in lower case and without a port", o.Host)
	case len(o.Paths) > maxPaths:
		return fmt.Errorf("%d paths: at most %d", len(o.Paths), maxPaths)
	}
	for i, path := range o.Paths {
		if err := checkPath(path); err != nil {
			return fmt.Errorf("paths[%d]: %.80q: %w", i, path, err)
		}
	}
	return nil
}

// isHost says whether a text is a host in the one form of it.
func isHost(s string) bool {
	if len(s) > 253 || strings.HasPrefix(s, ".") || strings.HasSuffix(s, ".") {
		return false
	}
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '.' && c != '_' {
			return false
		}
	}
	return true
}

// maxTag is the longest cache tag, in bytes (CloudFront).
const maxTag = 256

// checkPath holds what CloudFront says of invalidation paths and cache tags ("Invalidate files: what you need to know").
func checkPath(path string) error {
	if tag, is := strings.CutPrefix(path, "#"); is {
		return checkTag(tag)
	}
	switch {
	case !strings.HasPrefix(path, "/"):
		return errors.New("want a path that begins with /, or # and a tag")
	case len(path) > maxPath:
		return fmt.Errorf("%d characters: at most %d", len(path), maxPath)
	case strings.Contains(strings.TrimSuffix(path, "*"), "*"):
		return errors.New("* stands for other text only as the last character")
	}
	for _, c := range []byte(path) {
		if c <= ' ' || c >= 0x7f {
			return errors.New("other than ASCII's visible characters must be URL-encoded")
		}
	}
	return nil
}

func checkTag(tag string) error {
	if tag == "" || len(tag) > maxTag {
		return fmt.Errorf("a tag of %d bytes: 1–%d", len(tag), maxTag)
	}
	for _, c := range []byte(tag) {
		if c <= ' ' || c >= 0x7f || c == ',' {
			return errors.New("a tag is of ASCII's visible characters, without commas")
		}
	}
	return nil
}

func (o Order) checkCIDRs() error {
	if len(o.CIDRs) == 0 {
		return errors.New("no CIDR")
	}
	for i, p := range o.CIDRs {
		if err := checkCIDR(p); err != nil {
			return fmt.Errorf("cidrs[%d]: %w", i, err)
		}
		if p.Bits() == 0 && o.Kind == OrderBlock && !o.Force {
			return fmt.Errorf("cidrs[%d]: %s is everybody: that must be forced", i, p)
		}
	}
	return nil
}

// checkCIDR wants the one form of each, so that a block is found again by its text.
func checkCIDR(p netip.Prefix) error {
	switch {
	case !p.IsValid():
		return errors.New("want an address, / and a number of bits")
	case p.Addr().Is4In6():
		return fmt.Errorf("%s: want an IPv4 address as such", p)
	case p != p.Masked():
		return fmt.Errorf("%s has bits behind its prefix: want %s", p, p.Masked())
	}
	return nil
}

func (o Order) checkScope() error {
	switch o.Scope {
	case ScopeNode, ScopePOP, ScopeRegion:
	default:
		return fmt.Errorf("scope %.80q: want %s, %s or %s", o.Scope, ScopeNode, ScopePOP, ScopeRegion)
	}
	if !isLabel(o.Name) {
		return fmt.Errorf("%s %.80q: want 1–63 of a–z, 0–9 and inner hyphens", o.Scope, o.Name)
	}
	return nil
}

func (o Order) checkUntil() error {
	switch life := o.Until.Sub(o.Time); {
	case o.Until.IsZero():
	case life <= 0:
		return errors.New("it ends before it begins")
	case life > maxOrderLife:
		return fmt.Errorf("it lasts %v: at most %v, or until it is undone", life, maxOrderLife)
	}
	return nil
}

func isOrderID(s string) bool {
	const allowed = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	return len(s) >= 1 && len(s) <= maxOrderID && strings.Trim(s, allowed) == ""
}

// isPlain says whether a text can stand in a log line or on a terminal as it is.
func isPlain(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(c rune) bool { return !unicode.IsPrint(c) })
}
