package roster

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"
)

var noon = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

func purgeOf(id string, paths ...string) Order {
	return Order{ID: id, Kind: OrderPurge, Time: noon, Distribution: "web", Paths: paths, Author: "ci@access"}
}

func blockOf(id string, cidrs ...string) Order {
	o := Order{ID: id, Kind: OrderBlock, Time: noon, Author: "ci@access"}
	for _, c := range cidrs {
		o.CIDRs = append(o.CIDRs, netip.MustParsePrefix(c))
	}
	return o
}

func unblockOf(id string, cidrs ...string) Order {
	o := blockOf(id, cidrs...)
	o.Kind = OrderUnblock
	return o
}

func drainOf(id, scope, name string) Order {
	return Order{ID: id, Kind: OrderDrain, Time: noon, Scope: scope, Name: name, Author: "ci@access"}
}

func undrainOf(id, scope, name string) Order {
	o := drainOf(id, scope, name)
	o.Kind = OrderUndrain
	return o
}

// lasting is an order that ends by itself.
func lasting(o Order, life time.Duration) Order {
	o.Until = o.Time.Add(life)
	return o
}

// but is an order with something changed.
func but(o Order, change func(o *Order)) Order {
	change(&o)
	return o
}

func goodOrders() []Order {
	return []Order{
		purgeOf("a", "/*"),
		purgeOf("b", "/index.html", "/img/*", "/search?q=a&b=<c>", "/a*", "/"+strings.Repeat("x", 3999)),
		purgeOf("t", "#Product-7", "/a", "#"+strings.Repeat("x", 256)),
		but(purgeOf("s", "/*"), func(o *Order) { o.Host, o.Soft = "fr.shop.example", true }),
		blockOf("c", "192.0.2.0/24", "2001:db8::/32", "198.51.100.7/32"),
		lasting(blockOf("d", "0.0.0.0/1"), time.Minute),
		but(blockOf("e", "0.0.0.0/0", "::/0"), func(o *Order) { o.Force = true }),
		unblockOf("f", "192.0.2.0/24"),
		unblockOf("g", "0.0.0.0/0"),
		drainOf("h", ScopeNode, "icn1-a"),
		lasting(but(drainOf("i", ScopeRegion, "ap-northeast-2"), func(o *Order) { o.Reason = "maintenance, “planned”" }), 10*time.Minute),
		drainOf("J-0_z", ScopePOP, "icn1"),
		undrainOf("k", ScopePOP, "icn1"),
	}
}

func TestAnOrderIsReadAsItWasWritten(t *testing.T) {
	w := found(t)
	names := Names{Distribution: func(name string) bool { return name == "web" }}
	for _, o := range goodOrders() {
		if err := o.Validate(w.roster(), names); err != nil {
			t.Errorf("%s: %v", o, err)
		}
		got, err := DecodeOrder(EncodeOrder(o))
		if err != nil || fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", o) {
			t.Errorf("%+v came as %+v, %v", o, got, err)
		}
		elsewhere := o
		elsewhere.Time = o.Time.In(time.FixedZone("KST", 9*60*60))
		if string(EncodeOrder(elsewhere)) != string(EncodeOrder(o)) {
			t.Errorf("%s is written otherwise elsewhere", o)
		}
	}
}

func TestAnOrderThatIsNoneIsRefusedWithWhatIsWrong(t *testing.T) {
	w := found(t)
	names := Names{
		Distribution: func(name string) bool { return name == "web" },
		Region:       func(name string) bool { return name == "sa-east-1" },
	}
	many := make([]string, maxPaths+1)
	long := make([]string, 20)
	for i := range many {
		many[i] = "/"
	}
	for i := range long {
		long[i] = "/" + strings.Repeat("x", maxPath-1)
	}
	for _, c := range []struct {
		o    Order
		want string
	}{
		{Order{}, `order: id ""`},
		{but(purgeOf("a", "/"), func(o *Order) { o.ID = "a b" }), "purge: id"},
		{but(purgeOf("a", "/"), func(o *Order) { o.ID = strings.Repeat("a", 65) }), "purge: id"},
		{but(purgeOf("a", "/"), func(o *Order) { o.Time = time.Time{} }), "purge: no time"},
		{but(purgeOf("a", "/"), func(o *Order) { o.Time = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC) }), "purge: a time that cannot be written"},
		{but(purgeOf("a", "/"), func(o *Order) { o.Kind = "reboot" }), `reboot: kind "reboot"`},
		{but(purgeOf("a", "/"), func(o *Order) { o.Author = "\x1b[2J" }), "purge: author"},
		{but(purgeOf("a", "/"), func(o *Order) { o.Reason = strings.Repeat("a", 257) }), "purge: reason"},
		{but(purgeOf("a", "/"), func(o *Order) { o.Until = noon.Add(time.Hour) }), "purge: a purge has"},
		{but(purgeOf("a", "/"), func(o *Order) { o.Scope = ScopePOP }), "purge: a purge has"},
		{but(purgeOf("a", "/"), func(o *Order) { o.Distribution = "" }), "purge: distribution"},
		{but(purgeOf("a", "/"), func(o *Order) { o.Distribution = "api" }), "purge: there is no distribution api"},
		{purgeOf("a"), "purge: no path"},
		{purgeOf("a", many...), "purge: 3001 paths"},
		{purgeOf("a", long...), "purge: it takes 80"},
		{purgeOf("a", "/", "img/*"), `purge: paths[1]: "img/*": want a path that begins with /, or # and a tag`},
		{purgeOf("a", "#"), "purge: paths[0]: \"#\": a tag of 0 bytes"},
		{purgeOf("a", "#"+strings.Repeat("x", 257)), "a tag of 257 bytes"},
		{purgeOf("a", "#a,b"), "without commas"},
		{purgeOf("a", "#a b"), "ASCII's visible characters"},
		{but(purgeOf("a", "/"), func(o *Order) { o.Host = "Shop.example" }), "purge: host"},
		{but(purgeOf("a", "/"), func(o *Order) { o.Host = "shop.example:80" }), "purge: host"},
		{but(purgeOf("a", "/"), func(o *Order) { o.Host = strings.Repeat("a", 254) }), "purge: host"},
		{but(drainOf("a", ScopePOP, "icn1"), func(o *Order) { o.Soft = true }), "drain: a drain has"},
		{but(blockOf("a", "192.0.2.0/24"), func(o *Order) { o.Host = "a" }), "block: a block has"},
		{purgeOf("a", "/img/*.png"), "purge: paths[0]"},
		{purgeOf("a", "/**"), "purge: paths[0]"},
		{purgeOf("a", "/"+strings.Repeat("x", 4000)), "4001 characters"},
		{purgeOf("a", "/ä"), "URL-encoded"},
		{purgeOf("a", "/a b"), "URL-encoded"},
		{blockOf("a"), "block: no CIDR"},
		{blockOf("a", "192.0.2.0/24", "192.0.2.1/24"), "block: cidrs[1]: 192.0.2.1/24 has bits behind its prefix: want 192.0.2.0/24"},
		{blockOf("a", "::ffff:192.0.2.0/120"), "block: cidrs[0]: ::ffff:192.0.2.0/120: want an IPv4 address as such"},
		{but(blockOf("a"), func(o *Order) { o.CIDRs = []netip.Prefix{{}} }), "block: cidrs[0]: want an address"},
		{blockOf("a", "0.0.0.0/0"), "block: cidrs[0]: 0.0.0.0/0 is everybody: that must be forced"},
		{blockOf("a", "::/0"), "block: cidrs[0]: ::/0 is everybody"},
		{lasting(blockOf("a", "192.0.2.0/24"), -time.Second), "block: it ends before it begins"},
		{lasting(blockOf("a", "192.0.2.0/24"), 367*24*time.Hour), "block: it lasts"},
		{but(blockOf("a", "192.0.2.0/24"), func(o *Order) { o.Paths = []string{"/"} }), "block: a block has"},
		{but(unblockOf("a", "192.0.2.0/24"), func(o *Order) { o.Force = true }), "unblock: an unblock has"},
		{drainOf("a", "rack", "r1"), `drain: scope "rack": want node, pop or region`},
		{drainOf("a", ScopeNode, "Fra1/a"), "drain: node"},
		{drainOf("a", ScopeNode, "fra1-a"), "drain: there is no node fra1-a"},
		{drainOf("a", ScopePOP, "fra1"), "drain: there is no pop fra1"},
		{drainOf("a", ScopeRegion, "eu-central-1"), "drain: there is no region eu-central-1"},
		{drainOf("a", ScopeRegion, "sa-east-1"), ""},
		{but(drainOf("a", ScopePOP, "icn1"), func(o *Order) { o.Until = noon }), "drain: it ends before it begins"},
		{lasting(undrainOf("a", ScopePOP, "icn1"), time.Hour), "undrain: an undrain has"},
		{undrainOf("a", ScopePOP, "gone1"), ""}, // its end is no reason to keep it drained
	} {
		err := c.o.Validate(w.roster(), names)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%.100s: %v, want %q", c.o, err, c.want)
		}
	}
}

func TestAnOrderFromALaterReleaseIsRefusedNotHalfDone(t *testing.T) {
	good := string(EncodeOrder(purgeOf("a", "/")))
	for name, s := range map[string]string{
		"a field that is not known": strings.Replace(good, `{`, `{"tags":["b"],`, 1),
		"a kind that is not known":  strings.Replace(good, OrderPurge, "reboot", 1),
		"another case":              strings.Replace(good, `"kind"`, `"Kind"`, 1),
		"a field twice":             strings.Replace(good, `{`, `{"id":"b",`, 1),
		"another order of fields":   `{"kind":"purge","id":"a","time":"2026-11-23T12:00:00Z","distribution":"web","paths":["/"],"author":"ci@access"}`,
		"spaces":                    good + " ",
		"something behind":          good + good,
		"nothing":                   "",
		"null":                      "null",
		"half of it":                good[:len(good)/2],
		"an empty list":             strings.Replace(good, `"author"`, `"cidrs":[],"author"`, 1),
		"another zone":              strings.Replace(good, "12:00:00Z", "21:00:00+09:00", 1),
		"too much":                  strings.Replace(good, `["/"]`, `["/`+strings.Repeat("x", MaxOrder)+`"]`, 1),
	} {
		if o, err := DecodeOrder([]byte(s)); err == nil {
			t.Errorf("%s: read as %+v", name, o)
		}
	}
}

// FuzzDecodeOrder: what is read is good and is written as it came.
func FuzzDecodeOrder(f *testing.F) {
	for _, o := range goodOrders() {
		f.Add(EncodeOrder(o))
	}
	f.Add([]byte(`{"id":"a","kind":"block","time":"0000-01-01T00:00:00Z","cidrs":["::/0",""],"force":true,"until":"9999-12-31T23:59:59Z"}`))
	w := found(f)
	w.do(w.roster().Order(drainOf("first", ScopePOP, "icn1"), w.now))
	w.do(w.roster().Order(lasting(blockOf("second", "192.0.2.0/24"), time.Minute), w.now))
	r := w.roster()
	f.Fuzz(func(t *testing.T, b []byte) {
		o, err := DecodeOrder(b)
		if err != nil {
			return
		}
		if string(EncodeOrder(o)) != string(b) || len(o.String()) == 0 {
			t.Fatalf("%s was read from %s", EncodeOrder(o), b)
		}
		if e := r.Effects([]Order{o, o}, nil, noon); len(e.Blocks)+len(e.Drains) > 2+len(o.CIDRs)+1 {
			t.Fatalf("%+v", e)
		}
		c, err := r.Order(o, noon)
		if err != nil {
			return
		}
		next, revision, err := w.state.With(c)
		if err != nil {
			t.Fatal(err)
		}
		after, err := Read(&next.Own, r)
		if err != nil || after.Epoch != revision || revision != r.Revision+1 {
			t.Fatalf("%s: epoch %d at revision %d, %v", o, after.Epoch, revision, err)
		}
	})
}
