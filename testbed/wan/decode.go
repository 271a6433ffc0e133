package wan

import (
	"cmp"
	"embed"
	"errors"
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/perigee-net/perigee/cluster/spec"
)

// worldFile is a world as it is written. Defaults do most of it.
type worldFile struct {
	Name   string     `json:"name" rule:"required"`
	Matrix string     `json:"matrix,omitempty" default:"aws"` // aws, or a file
	Sites  []siteFile `json:"sites" rule:"required,1..60"`
	// Nodes are either listed or so many a site: icn1, icn2 …
	Nodes        []nodeFile `json:"nodes,omitempty" rule:"..500"`
	NodesPerSite *int       `json:"nodesPerSite,omitempty" rule:"0..50"` // 1, where none are listed
	// Targets are either listed or so many a site: icn-a, icn-b …
	Targets        []hostFile   `json:"targets,omitempty" rule:"..500"`
	TargetsPerSite *int         `json:"targetsPerSite,omitempty" rule:"0..26"` // 2, where none are listed
	Origins        []originFile `json:"origins,omitempty" rule:"..100"`
	// WAN is how all links are, Links how some are otherwise.
	WAN     pathFile   `json:"wan,omitzero"`
	Links   []linkFile `json:"links,omitempty" rule:"..1770"`
	Anycast []string   `json:"anycast,omitempty" rule:"..32"`
	Spec    string     `json:"spec,omitempty" rule:"..1024"`
}

type siteFile struct {
	Name    string         `json:"name" rule:"required"`
	Region  string         `json:"region" rule:"required"`
	City    string         `json:"city,omitempty" rule:"..80"`
	Country string         `json:"country,omitempty"`
	At      *spec.Location `json:"at,omitempty"` // needed where the region is none of AWS's
}

type nodeFile struct {
	Name  string   `json:"name" rule:"required"`
	Site  string   `json:"site" rule:"required"`
	POP   string   `json:"pop,omitempty"`
	Roles []string `json:"roles,omitempty" rule:"..8"`
}

type hostFile struct {
	Name string `json:"name" rule:"required"`
	Site string `json:"site" rule:"required"`
}

type originFile struct {
	Name    string `json:"name" rule:"required"`
	Site    string `json:"site" rule:"required"`
	Program string `json:"program,omitempty" rule:"nginx|faulty" default:"nginx"`
}

// pathFile is both directions of a link. Shares are 0.01 or 1%, rates 100mbit.
type pathFile struct {
	Jitter  *spec.Duration `json:"jitter,omitempty" rule:"0s..10s"`
	Loss    string         `json:"loss,omitempty"`
	Reorder string         `json:"reorder,omitempty"`
	Rate    string         `json:"rate,omitempty"`
	Queue   *int           `json:"queue,omitempty" rule:"1..100000"`
}

type linkFile struct {
	Between []string       `json:"between" rule:"required,2..2"`
	RTT     *spec.Duration `json:"rtt,omitempty" rule:"0s..20s"`
	Jitter  *spec.Duration `json:"jitter,omitempty" rule:"0s..10s"`
	Loss    string         `json:"loss,omitempty"`
	Reorder string         `json:"reorder,omitempty"`
	Rate    string         `json:"rate,omitempty"`
	Queue   *int           `json:"queue,omitempty" rule:"1..100000"`
}

func (l linkFile) path() pathFile { return pathFile{l.Jitter, l.Loss, l.Reorder, l.Rate, l.Queue} }

// maxFile bounds a world file and a matrix file.
const maxFile = 1 << 20

// Decode reads a world file: strict YAML, all faults at once, each with file, line and field. read reads the matrix file,
// where there is one; nil: there can be none. The error is spec.Faults. A whole file is
//
//	name: mine
//	sites:
//	  - {name: icn, region: ap-northeast-2}
//	  - {name: lab, region: my-own, at: {latitude: 64.1, longitude: -21.9}}
//
// which has one node, two targets and a resolver in each site, and the delays of AWS's matrix; between regions that are
// not in it, those of the distance. BuiltInText has more to copy.
func Decode(file string, data []byte, read func(name string) ([]byte, error)) (*World, error) {
	f := faults{file: file}
	if len(data) > maxFile {
		f.add("", "has %d bytes; a world has at most %d", len(data), maxFile)
		return nil, f.err()
	}
	var written worldFile
	var err error
	f.lineOf, err = spec.DecodeFile(file, data, &written)
	errors.As(err, &f.list)
	if slices.ContainsFunc(f.list, func(x spec.Fault) bool { return x.Field == "" }) {
		return nil, f.err() // it is no YAML, or not of fields
	}
	w := written.build(&f, read)
	if err := f.err(); err != nil {
		return nil, err
	}
	return w, nil
}

//go:embed worlds
var worlds embed.FS

// BuiltIns are the names of the worlds that are always there, small ones first: three regions with a node each, six, six
// with 20 nodes, and all regions of AWS's matrix, of which eight have a node, or all.
func BuiltIns() []string { return []string{"three", "six", "twenty", "eight", "aws"} }

// BuiltIn is one of the worlds that are always there, made anew.
func BuiltIn(name string) (*World, error) {
	if !slices.Contains(BuiltIns(), name) {
		return nil, fmt.Errorf("no world %.40q: there are %s", name, strings.Join(BuiltIns(), " "))
	}
	text, err := BuiltInText(name)
	if err != nil {
		return nil, err
	}
	return Decode(name+".yaml", text, nil)
}

// BuiltInText is the file of a world that is always there, as a pattern for others.
func BuiltInText(name string) ([]byte, error) { return worlds.ReadFile("worlds/" + name + ".yaml") }

// build makes the world, and tells what in it cannot be.
func (w *worldFile) build(f *faults, read func(string) ([]byte, error)) *World {
	made := &World{Name: w.Name, Spec: w.Spec, Matrix: w.matrix(f, read)}
	if problem := labelProblem(w.Name, maxWorldName); problem != "" {
		f.add("name", "%s", problem)
	}
	for i := range w.Sites {
		w.site(i, made, f)
	}
	if len(made.Sites) == 0 || len(made.Sites) < len(w.Sites) || made.Matrix == nil {
		return nil // hosts and links would be told to have no sites
	}
	w.hosts(made, f)
	w.links(made, f)
	w.anycast(made, f)
	return made
}

func (w *worldFile) matrix(f *faults, read func(string) ([]byte, error)) *Matrix {
	if w.Matrix == "aws" {
		return AWS()
	}
	if read == nil {
		f.add("matrix", "must be aws: there is nowhere to read %.80q from", w.Matrix)
		return nil
	}
	data, err := read(w.Matrix)
	if err == nil && len(data) > maxFile {
		err = fmt.Errorf("has %d bytes; a matrix has at most %d", len(data), maxFile)
	}
	if err != nil {
		f.add("matrix", "%v", err)
		return nil
	}
	m, err := decodeMatrix(path.Base(w.Matrix), string(data))
	var theirs spec.Faults
	if errors.As(err, &theirs) {
		f.list = append(f.list, theirs...)
	}
	return m
}

func (w *worldFile) site(i int, made *World, f *faults) {
	in, at := w.Sites[i], fmt.Sprintf("sites[%d]", i)
	s := Site{Name: in.Name, Region: in.Region, City: in.City, Country: in.Country, Number: i + 1}
	s.V4, s.V6 = routerAddrs(s.Number)
	if problem := labelProblem(in.Name, maxSiteName); problem != "" {
		f.add(at+".name", "%s", problem)
	} else if problem := made.nameProblem(Host{Name: in.Name}); problem != "" {
		f.add(at+".name", "%s", problem)
	}
	if problem := labelProblem(in.Region, maxName); problem != "" {
		f.add(at+".region", "%s", problem)
		return
	}
	if c := in.Country; c != "" && (len(c) != 2 || strings.Trim(c, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") != "") {
		f.add(at+".country", "must be two capital letters, not %.40q", c)
	}
	known, ok := regionPlace(in.Region)
	if in.At != nil {
		s.At = *in.At
	} else if s.At = known.At; !ok {
		f.add(at, "needs at: {latitude, longitude}, because %.40q is no region whose place is known", in.Region)
	}
	if s.City == "" {
		s.City = known.City
	}
	if s.Country == "" {
		s.Country = known.Country
	}
	made.Sites = append(made.Sites, s)
}

// hosts adds all hosts, each site's in one order: nodes, targets, resolver, then origins and the name servers.
func (w *worldFile) hosts(made *World, f *faults) {
	addTo := func(field string, h Host) {
		if _, err := made.Add(h); err != nil {
			f.add(field, "%v", err)
		}
	}
	add := func(at string, h Host) {
		if _, ok := made.Site(h.Site); !ok {
			f.add(at+".site", "no site %.40q", h.Site)
			return
		}
		addTo(at+".name", h)
	}
	for i, n := range w.Nodes {
		at := fmt.Sprintf("nodes[%d]", i)
		if problem := labelProblem(n.POP, maxName); n.POP != "" && problem != "" {
			f.add(at+".pop", "%s", problem)
		}
		for j, role := range n.Roles {
			if problem := labelProblem(role, maxName); problem != "" {
				f.add(fmt.Sprintf("%s.roles[%d]", at, j), "%s", problem)
			}
		}
		add(at, Host{Name: n.Name, Kind: Node, Site: n.Site, POP: n.POP, Roles: n.Roles})
	}
	for i, t := range w.Targets {
		add(fmt.Sprintf("targets[%d]", i), Host{Name: t.Name, Kind: Target, Site: t.Site})
	}
	nodes, targets := perSite(f, "nodes", w.Nodes != nil, w.NodesPerSite, 1), perSite(f, "targets", w.Targets != nil, w.TargetsPerSite, 2)
	for _, s := range made.Sites {
		for i := range nodes {
			addTo("nodesPerSite", Host{Name: s.Name + strconv.Itoa(i+1), Kind: Node, Site: s.Name})
		}
	}
	for _, s := range made.Sites {
		for i := range targets {
			addTo("targetsPerSite", Host{Name: s.Name + "-" + string(rune('a'+i)), Kind: Target, Site: s.Name})
		}
	}
	for _, s := range made.Sites {
		addTo("sites", Host{Name: "resolver-" + s.Name, Kind: Resolver, Site: s.Name})
	}
	for i, o := range w.Origins {
		add(fmt.Sprintf("origins[%d]", i), Host{Name: o.Name, Kind: Origin, Site: o.Site, Program: o.Program})
	}
	// Apart from each other, where there are two sites.
	addTo("sites", Host{Name: "root", Kind: Root, Site: made.Sites[0].Name})
	addTo("sites", Host{Name: "tld", Kind: TLD, Site: made.Sites[len(made.Sites)-1].Name})
}

// perSite is how many hosts of a kind each site has, where they are not listed.
func perSite(f *faults, list string, listed bool, told *int, usual int) int {
	switch {
	case listed && told != nil:
		f.add(list+"PerSite", "cannot be beside %s", list)
		return 0
	case listed:
		return 0
	case told != nil:
		return *told
	}
	return usual
}

// leastRTT is the round trip between two sites at one place.
const leastRTT = 500 * time.Microsecond

func (w *worldFile) links(made *World, f *faults) {
	usual := Path{}
	w.WAN.into(&usual, "wan", f)
	for i, a := range made.Sites {
		for _, b := range made.Sites[i+1:] {
			rtt, measured := made.Matrix.Between(a.Region, b.Region)
			if !measured {
				rtt = min(max(a.At.RoundTrip(b.At), leastRTT), maxRTT)
			}
			p := usual
			p.Delay = rtt / 2
			p.Jitter = min(p.Jitter, p.Delay)
			number := len(made.Links) + 1
			l := Link{A: a.Name, B: b.Name, AB: p, BA: p, Number: number}
			l.V4A, l.V4B = linkAddrs(number)
			made.Links = append(made.Links, l)
		}
	}
	seen := map[int]bool{}
	for i, in := range w.Links {
		at := fmt.Sprintf("links[%d]", i)
		if len(in.Between) != 2 {
			continue // told by the decoder
		}
		l, ok := made.Link(in.Between[0], in.Between[1])
		if !ok {
			f.add(at+".between", "must be two sites, not %.40q and %.40q", in.Between[0], in.Between[1])
			continue
		}
		if seen[l.Number] {
			f.add(at+".between", "%s and %s are here twice", l.A, l.B)
			continue
		}
		seen[l.Number] = true
		p := l.AB
		if in.RTT != nil {
			p.Delay = in.RTT.Std() / 2
			p.Jitter = min(p.Jitter, p.Delay)
		}
		in.path().into(&p, at, f)
		if p.Jitter > p.Delay {
			f.add(at+".jitter", "must be at most half the round trip, %v, not %v", p.Delay, p.Jitter)
		}
		l.AB, l.BA = p, p
	}
}

// into changes what of a path is written.
func (in pathFile) into(p *Path, at string, f *faults) {
	if in.Jitter != nil {
		p.Jitter = in.Jitter.Std()
	}
	share := func(field, text string, into *float64) {
		if text == "" {
			return
		}
		var err error
		if *into, err = Share(text); err != nil {
			f.add(at+"."+field, "%v", err)
		}
	}
	share("loss", in.Loss, &p.Loss)
	share("reorder", in.Reorder, &p.Reorder)
	if in.Rate != "" {
		var err error
		if p.Rate, err = Rate(in.Rate); err != nil {
			f.add(at+".rate", "%v", err)
		}
	}
	if in.Queue != nil {
		p.Queue = *in.Queue
	}
}

// usualAnycast are documentation prefixes (RFC 5737, RFC 3849), so that no one's real addresses are announced by mistake.
var usualAnycast = []string{"198.51.100.0/24", "2001:db8:100::/48"}

func (w *worldFile) anycast(made *World, f *faults) {
	texts := w.Anycast
	if texts == nil {
		texts = usualAnycast
	}
	own := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/32")}
	for i, text := range texts {
		at := fmt.Sprintf("anycast[%d]", i)
		p, err := netip.ParsePrefix(text)
		if err != nil || p != p.Masked() || p.Addr().IsMulticast() || p.Addr().IsLinkLocalUnicast() || p.Addr().IsLoopback() || p.Addr().Is4In6() || p.Bits() < 8 {
			f.add(at, "must be a prefix such as %s, not %.60q", strings.Join(usualAnycast, " or "), text)
			continue
		}
		for _, other := range slices.Concat(own, made.Anycast) {
			if p.Overlaps(other) {
				f.add(at, "%v overlaps %v, which is in use", p, other)
			}
		}
		made.Anycast = append(made.Anycast, p)
	}
}

// Share reads a share of packets: 0.01 or 1%.
func Share(text string) (float64, error) {
	number, percent := strings.CutSuffix(text, "%")
	x, err := strconv.ParseFloat(number, 64)
	if percent {
		x /= 100
	}
	if err != nil || !(x >= 0 && x <= 1) {
		return 0, fmt.Errorf("must be a share, 0–1 or 0%%–100%%, not %.40q", text)
	}
	return x, nil
}

// Rate reads a rate as tc writes it, 100mbit or 1.5gbit or bit/s without a unit; 0 is no bound.
func Rate(text string) (int64, error) {
	number, unit := strings.ToLower(text), 1.0
	for _, u := range []struct {
		name string
		bits float64
	}{{"kbit", 1e3}, {"mbit", 1e6}, {"gbit", 1e9}, {"bit", 1}} {
		if n, ok := strings.CutSuffix(number, u.name); ok {
			number, unit = n, u.bits
			break
		}
	}
	x, err := strconv.ParseFloat(number, 64)
	if err != nil || x != 0 && !(x*unit >= MinRate && x*unit <= MaxRate) {
		return 0, fmt.Errorf("must be a rate, 8kbit–100gbit, or 0 for no bound, not %.40q", text)
	}
	return int64(x * unit), nil
}

// Bounds of names: an interface's name, w-SITE, has 15 bytes, and a host name's label 63.
const (
	maxName      = 40
	maxSiteName  = 12
	maxWorldName = 20
)

// labelProblem says what is wrong with a name that is part of host names, interfaces and files, or "".
func labelProblem(name string, most int) string {
	if name == "" || len(name) > most || name[0] < 'a' || name[0] > 'z' || strings.HasSuffix(name, "-") ||
		strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
		return fmt.Sprintf("must be 1–%d small letters, digits and -, a letter first, not %.60q", most, name)
	}
	return ""
}

// nameProblem says why a host cannot have its name, or "".
func (w *World) nameProblem(h Host) string {
	if problem := labelProblem(h.Name, maxName); problem != "" {
		return problem
	}
	place := slices.ContainsFunc(places, func(p Place) bool { return p.Name == h.Name })
	site, resolver := strings.CutPrefix(h.Name, "resolver-")
	if resolver {
		_, resolver = w.Site(site)
	}
	switch {
	case place != (h.Number >= firstPlace) || place && h.Kind != Client:
		return fmt.Sprintf("%q is the name of a place, kept with its number for its client", h.Name)
	case resolver && h.Kind != Resolver, h.Name == "root" && h.Kind != Root, h.Name == "tld" && h.Kind != TLD:
		return fmt.Sprintf("%q is kept for the server of that name", h.Name)
	}
	return w.taken(h.Name)
}

// taken says what else has a name already, or "".
func (w *World) taken(name string) string {
	if _, ok := w.Host(name); ok {
		return fmt.Sprintf("%q is the name of a host already", name)
	}
	for _, s := range w.Sites {
		if s.Name == name || s.Router() == name {
			return fmt.Sprintf("%q is the name of a site or its router", name)
		}
	}
	return ""
}

// faults gathers what is wrong with a file.
type faults struct {
	file   string
	line   int                    // of all faults, where there is no lineOf
	lineOf func(field string) int // nil: not a file with fields
	list   spec.Faults
}

// maxFaults bounds how many are told.
const maxFaults = 100

// add adds a fault, unless one is told of the same field, or around it, or inside it: what could not be read is missing.
// One of a list's length or of many hosts is told once.
func (f *faults) add(field, format string, args ...any) {
	if len(f.list) >= maxFaults || field != "" && slices.ContainsFunc(f.list, func(x spec.Fault) bool {
		return within(field, x.Field) || within(x.Field, field)
	}) {
		return
	}
	line := f.line
	if f.lineOf != nil {
		line = f.lineOf(field)
	}
	f.list = append(f.list, spec.Fault{File: f.file, Line: line, Field: field, Message: fmt.Sprintf(format, args...)})
}

// within says whether a field is another, or inside it.
func within(field, around string) bool {
	rest, ok := strings.CutPrefix(field, around)
	return ok && around != "" && (rest == "" || rest[0] == '.' || rest[0] == '[')
}

func (f *faults) err() error {
	if len(f.list) == 0 {
		return nil
	}
	slices.SortStableFunc(f.list, func(a, b spec.Fault) int {
		return cmp.Or(strings.Compare(a.File, b.File), a.Line-b.Line)
	})
	return f.list
}
