package page

import (
	_ "embed"
	"fmt"
	"html/template"
	"math"
	"strconv"
	"strings"
)

// landText is what ./land makes of Natural Earth's outlines.
//
//go:embed land.txt
var landText string

const (
	worldWide = 1080.0 // of the whole map, in its own units
	middle    = 11.0   // the meridian in its middle, as in ./land
	northEnd  = 80.0   // the parallels at its ends
	southEnd  = -57.0
)

// project is Natural Earth's projection (Šavrič, Jenny, Patterson, Petrovič, Hurni 2011, by its polynomials), in units
// of the map.
func project(lat, lon float64) (x, y float64) {
	return projectShifted(lat, math.Mod(lon-middle+540, 360)-180)
}

// projectShifted is project with the longitude counted from the middle of the map.
func projectShifted(lat, lon float64) (x, y float64) {
	radius := worldWide / 2 / (0.8707 * math.Pi)
	f := func(lat float64) (x, y float64) {
		p := lat * math.Pi / 180
		p2 := p * p
		p4 := p2 * p2
		x = 0.8707 - 0.131979*p2 + p4*(-0.013791+p4*p2*(0.003971-0.001529*p2))
		y = p * (1.007226 + p2*(0.015085+p4*(-0.044475+0.028874*p2-0.005916*p4)))
		return x, y
	}
	stretch, up := f(lat)
	_, top := f(northEnd)
	return worldWide/2 + radius*lon*math.Pi/180*stretch, radius * (top - up)
}

// worldHigh is how high the whole map is.
func worldHigh() float64 {
	_, y := projectShifted(southEnd, 0)
	return y
}

// landPath is the land as a path, in tenths of the map's units.
func landPath() (string, error) {
	var b strings.Builder
	for number, ring := range strings.Split(strings.TrimSpace(landText), "\n") {
		fields := strings.Fields(ring)
		lon, lat, fromX, fromY := 0, 0, 0, 0
		for i := 0; i+1 < len(fields); i += 2 {
			east, err1 := strconv.Atoi(fields[i])
			north, err2 := strconv.Atoi(fields[i+1])
			if err1 != nil || err2 != nil {
				return "", fmt.Errorf("read land.txt: ring %d is no row of numbers", number+1)
			}
			lon, lat = lon+east, lat+north
			fx, fy := projectShifted(max(southEnd-2, min(float64(lat)/10, northEnd+4)), float64(lon)/10)
			x, y := int(math.Round(fx*10)), int(math.Round(fy*10))
			switch {
			case i == 0:
				fmt.Fprintf(&b, "M%d %d", x, y)
			case x == fromX && y == fromY:
				continue
			default:
				fmt.Fprintf(&b, "l%d %d", x-fromX, y-fromY)
			}
			fromX, fromY = x, y
		}
		b.WriteString("z")
	}
	return b.String(), nil
}

// window is the part of the map that is drawn, in the map's units, and how large.
type window struct{ x, y, w, h, scale float64 }

// look is the window that holds all places of a run: the whole width of the world if they are spread over it.
func look(r Run, drawn float64) window {
	left, right, top, bottom := math.Inf(1), math.Inf(-1), math.Inf(1), math.Inf(-1)
	mark := func(lat, lon float64) {
		x, y := project(lat, lon)
		left, right, top, bottom = min(left, x), max(right, x), min(top, y), max(bottom, y)
	}
	for _, s := range r.Sites {
		mark(s.Lat, s.Lon)
	}
	for _, c := range r.Clients {
		mark(c.Lat, c.Lon)
	}
	all := worldHigh()
	if math.IsInf(left, 1) {
		return window{0, 0, worldWide, all, drawn / worldWide}
	}
	pad := 30 + 18*worldWide/drawn
	w := window{x: left - pad, y: top - pad, w: right - left + 2*pad, h: bottom - top + 2*pad}
	if w.w > 0.55*worldWide && drawn > narrow {
		w.x, w.w = 0, worldWide
	}
	widen := func(at, length *float64, least, most float64) {
		if *length < least {
			*at, *length = *at-(least-*length)/2, least
		}
		*length = min(*length, most)
		*at = max(0, min(*at, most-*length))
	}
	widen(&w.x, &w.w, 260, worldWide)
	widen(&w.y, &w.h, 0.42*w.w, all)
	widen(&w.x, &w.w, min(worldWide, w.h/0.62), worldWide)
	w.scale = drawn / w.w
	return w
}

// spot is a place on a drawing.
type spot struct{ x, y float64 }

// spots are where the sites and the clients are drawn: where they are, but clients that would cover a site or each
// other are moved apart.
func (w window) spots(r Run, apart float64) (sites, clients []spot) {
	at := func(lat, lon float64) spot {
		x, y := project(lat, lon)
		return spot{(x - w.x) * w.scale, (y - w.y) * w.scale}
	}
	for _, s := range r.Sites {
		sites = append(sites, at(s.Lat, s.Lon))
	}
	for _, c := range r.Clients {
		clients = append(clients, at(c.Lat, c.Lon))
	}
	for range 60 {
		moved := false
		for i := range clients {
			for j := range len(sites) + i {
				other, share := &spot{}, 1.0
				if j < len(sites) {
					*other = sites[j]
				} else {
					other, share = &clients[j-len(sites)], 0.5
				}
				dx, dy := clients[i].x-other.x, clients[i].y-other.y
				far := math.Hypot(dx, dy)
				if far >= apart {
					continue
				}
				if far < 0.5 {
					angle := 2.4*float64(i) + 2.2 // each one elsewhere
					dx, dy, far = math.Cos(angle), math.Sin(angle), 1
				}
				push := (apart - min(far, apart) + 0.2) / far
				clients[i].x, clients[i].y = clients[i].x+dx*push*share, clients[i].y+dy*push*share
				if share < 1 {
					other.x, other.y = other.x-dx*push*(1-share), other.y-dy*push*(1-share)
				}
				moved = true
			}
		}
		if !moved {
			break
		}
	}
	for i := range clients {
		clients[i].x = max(6, min(clients[i].x, w.w*w.scale-6))
		clients[i].y = max(6, min(clients[i].y, w.h*w.scale-6))
	}
	return sites, clients
}

// arc is a line between two places as a path from spot to spot, and the point in its middle. It goes the shorter way
// around the world and bows a little to the nearer pole, as ways over the globe do on a map, but not as far: a great
// circle between two places of the north would leave the map. Where it crosses the map's edge it comes back at the
// other.
func (d *drawing) arc(w window, latA, lonA, latB, lonB float64, a, b spot) (path string, mid spot) {
	const parts = 32
	east := math.Mod(lonB-lonA+540, 360) - 180
	bow := min(20, 0.13*math.Abs(east))
	if latA+latB < 0 {
		bow = -bow
	}
	if math.Hypot(east, latB-latA) < 2 {
		return fmt.Sprintf("M%s %sL%s %s", n(a.x), n(a.y), n(b.x), n(b.y)), spot{(a.x + b.x) / 2, (a.y + b.y) / 2}
	}
	left, right := -w.x*w.scale, (worldWide-w.x)*w.scale
	var out strings.Builder
	last := a
	fmt.Fprintf(&out, "M%s %s", n(a.x), n(a.y))
	for i := 1; i <= parts; i++ {
		at := b
		if i < parts {
			t := float64(i) / parts
			x, y := project(latA+(latB-latA)*t+bow*math.Sin(math.Pi*t), lonA+east*t)
			at = spot{(x - w.x) * w.scale, (y - w.y) * w.scale}
		}
		switch high := (at.y + last.y) / 2; {
		case at.x-last.x > (right-left)/2:
			fmt.Fprintf(&out, "L%s %sM%s %s", n(left), n(high), n(right), n(high))
		case last.x-at.x > (right-left)/2:
			fmt.Fprintf(&out, "L%s %sM%s %s", n(right), n(high), n(left), n(high))
		}
		fmt.Fprintf(&out, "L%s %s", n(at.x), n(at.y))
		d.lines = append(d.lines, spot{(at.x + last.x) / 2, (at.y + last.y) / 2}, at)
		if i == parts/2 {
			mid = at
		}
		last = at
	}
	return out.String(), mid
}

// place finds room for a text beside a mark: the nearest spot around it that no label or mark covers, and as few lines
// as may be cross. Where there is none it takes the least covered, or says no, if the text may be left out.
func (d *drawing) place(text string, size float64, at spot, near float64, must bool) (x, y float64, ok bool) {
	w, h := width(text, size), size*1.15
	best, least, clear := box{}, math.Inf(1), false
	rings := 6
	if !must {
		rings = 3 // what may be left out does not stand far off
	}
	for ring := range rings {
		gap := near + 8*float64(ring)
		for side, dir := range [...]spot{{1, 0}, {-1, 0}, {0, -1}, {0, 1}, {0.8, -0.8}, {-0.8, -0.8}, {0.8, 0.8}, {-0.8, 0.8}} {
			c := spot{at.x + dir.x*(gap+w/2), at.y + dir.y*(gap+h/2)}
			b := box{c.x - w/2, c.y - h/2, w, h}
			covered := 0.0
			if b.x < 1 || b.y < 1 || b.x+b.w > d.w-1 || b.y+b.h > d.h-1 {
				covered = 10_000
			}
			for _, taken := range d.labels {
				covered += taken.overlap(b)
			}
			crossed := 0.0
			for _, p := range d.lines {
				if p.x > b.x && p.x < b.x+b.w && p.y > b.y && p.y < b.y+b.h {
					crossed++
				}
			}
			cost := 50*covered + 6*min(crossed, 6) + 9*float64(ring) + 0.5*float64(side)
			if cost < least {
				best, least, clear = b, cost, covered == 0
			}
		}
	}
	if !clear && !must {
		return 0, 0, false
	}
	best.x, best.y = max(1, min(best.x, d.w-best.w-1)), max(1, min(best.y, d.h-best.h-1))
	d.labels = append(d.labels, best)
	if tx, ty := max(best.x, min(at.x, best.x+best.w)), max(best.y, min(at.y, best.y+best.h)); must && math.Hypot(tx-at.x, ty-at.y) > near+14 {
		d.line("leader", at.x, at.y, tx, ty)
	}
	return best.x, best.y + 0.82*h, true
}

// ground begins a drawing of the map, with the land.
func ground(r Run, drawn float64, class, title string) (*drawing, window) {
	w := look(r, drawn)
	d := newDrawing(drawn, w.h*w.scale, class, title)
	d.add(`<use href="#land" class="land" transform="translate(%s %s) scale(%.4f)"/>`, n(-w.x*w.scale), n(-w.y*w.scale), w.scale/10)
	return d, w
}

// maxNotes is from how many links on they are drawn faintly and without their round trips, which the table has.
const maxNotes = 45

// theMap is the whole run on one map: sites, links with round trips, and who served each client before any change and
// after.
func theMap(r Run, all []phase, pop map[string]int) template.HTML {
	return both(func(drawn float64) *drawing {
		d, w := ground(r, drawn, "map", "Map of the sites, their links and the clients")
		small := drawn == narrow
		size, apart := 12.0, 15.0
		if small {
			size, apart = 11, 11
		}
		sites, clients := w.spots(r, apart)
		for _, s := range sites {
			d.labels = append(d.labels, box{s.x - 8, s.y - 8, 16, 16})
		}
		for _, c := range clients {
			d.labels = append(d.labels, box{c.x - 5, c.y - 5, 10, 10})
		}
		type note struct {
			text string
			at   spot
		}
		var trips []note
		for _, l := range r.Links {
			a, b := siteOf(r, l.A, false), siteOf(r, l.B, false)
			if a < 0 || b < 0 || a == b {
				continue
			}
			path, mid := d.arc(w, r.Sites[a].Lat, r.Sites[a].Lon, r.Sites[b].Lat, r.Sites[b].Lon, sites[a], sites[b])
			class := "link"
			if len(r.Links) > maxNotes {
				class = "link many"
			}
			d.add(`<path class="%s" d="%s"><title>%s</title></path>`, class, path, escape(l.A+" – "+l.B+": "+show(l.RTT, "")))
			trips = append(trips, note{show(l.RTT, ""), mid})
		}
		for i, c := range r.Clients {
			for _, way := range ways(r, all, i) {
				s := siteOf(r, way.by, true)
				if s < 0 {
					continue
				}
				path, _ := d.arc(w, c.Lat, c.Lon, r.Sites[s].Lat, r.Sites[s].Lon, clients[i], sites[s])
				class, when := "served", "before any change"
				if way.phase > 0 {
					class, when = "served later", "after "+all[way.phase].letters()
				}
				d.add(`<path class="%s %s" d="%s"><title>%s</title></path>`, class, hue(index(pop, way.by)), path,
					escape(c.Name+" was served by "+way.by+" "+when))
			}
		}
		for i, c := range r.Clients {
			d.add(`<circle class="client" cx="%s" cy="%s" r="%s"><title>%s</title></circle>`, n(clients[i].x), n(clients[i].y), n(size/3),
				escape("client "+c.Name+", "+c.City))
		}
		for i, s := range r.Sites {
			d.site(r, i, sites[i], pop, false)
			name := clip(s.Name, 24)
			if !small && s.City != "" && !strings.EqualFold(s.City, s.Name) && len(r.Sites) <= 24 {
				city := clip(s.City, 24)
				if x, y, ok := d.place(name+" "+city, size*1.06, sites[i], 11, true); ok {
					d.add(`<text class="name halo" x="%s" y="%s">%s<tspan class="city"> %s</tspan></text>`, n(x), n(y), escape(name), escape(city))
				}
				continue
			}
			x, y, _ := d.place(name, size*1.06, sites[i], 10, true)
			d.text("name halo", "start", x, y, name)
		}
		for i, c := range r.Clients {
			if name := clip(c.Name, 20); len(r.Clients) <= 60 || !small {
				if x, y, ok := d.place(name, size, clients[i], 6, len(r.Clients) <= 12); ok {
					d.text("who halo", "start", x, y, name)
				}
			}
		}
		if len(trips) > maxNotes {
			return d
		}
		for _, t := range trips {
			if x, y, ok := d.place(t.text, size-1, t.at, -5, false); ok {
				d.text("rtt halo", "start", x, y, t.text)
			}
		}
		return d
	})
}

// site draws a site in the colour and shape of its first POP, in a ring if a fault that stands names it.
func (d *drawing) site(r Run, i int, at spot, pop map[string]int, broken bool) {
	s := r.Sites[i]
	its := -1
	for name, k := range pop {
		if siteOf(r, name, true) == i && (its < 0 || k < its) {
			its = k
		}
	}
	title := s.Name
	if s.City != "" {
		title += ", " + s.City
	}
	if len(s.Hosts) > 0 {
		title += ": " + clip(strings.Join(s.Hosts, " "), 300)
	}
	d.add(`<g><title>%s</title>`, escape(title))
	if its < 0 {
		d.add(`<circle class="site" cx="%s" cy="%s" r="5"/>`, n(at.x), n(at.y))
	} else {
		d.add(`<path class="%s big" d="%s"/>`, glyphClass(its), glyph(its, at.x, at.y, 5.5))
	}
	if broken {
		d.add(`<path class="broken" d="M%s %sl14 14m0-14l-14 14"/><circle class="broken" cx="%s" cy="%s" r="10"/>`, n(at.x-7), n(at.y-7), n(at.x), n(at.y))
	}
	d.add(`</g>`)
}

// way is who served a client, and in which phase first.
type way struct {
	by    string
	phase int
}

// ways are those who served a client at the ends of the phases, each once.
func ways(r Run, all []phase, client int) []way {
	var list []way
	for p := range all {
		by, _, _ := servedIn(r, all[p], client)
		known := by == ""
		for _, w := range list {
			known = known || w.by == by
		}
		if !known {
			list = append(list, way{by, p})
		}
	}
	return list
}

// servedIn is who served a client at the end of a phase, whether it failed there, and whether it asked at all. It goes
// by the first of its series that says who served.
func servedIn(r Run, p phase, client int) (by string, failing, asked bool) {
	for _, s := range r.Series {
		if clientOf(r, s) != client {
			continue
		}
		samples := between(s.Samples, p.From, p.To)
		if len(samples) == 0 {
			continue
		}
		asked = true
		b, f := serving(samples)
		if b != "" {
			return b, f, true
		}
		failing = failing || f
	}
	return "", failing, asked
}

// index is a POP's number, −1 for one that has none.
func index(pop map[string]int, name string) int {
	if i, ok := pop[name]; ok {
		return i
	}
	return -1
}

// maxPhases bounds the maps of phases.
const maxPhases = 24

// phaseMap is who was served by whom at the end of one phase.
func phaseMap(r Run, all []phase, k int, pop map[string]int) template.HTML {
	d, w := ground(r, narrow, "map", "Who was served by whom at the end of this time")
	p := all[k]
	sites, clients := w.spots(r, 10)
	for _, s := range sites {
		d.labels = append(d.labels, box{s.x - 7, s.y - 7, 14, 14})
	}
	for _, c := range clients {
		d.labels = append(d.labels, box{c.x - 4, c.y - 4, 8, 8})
	}
	broken := map[int]bool{}
	for _, f := range p.Standing {
		named := names(r, f.Text)
		if len(named) == 2 {
			a, b := named[0], named[1]
			path, _ := d.arc(w, r.Sites[a].Lat, r.Sites[a].Lon, r.Sites[b].Lat, r.Sites[b].Lon, sites[a], sites[b])
			d.add(`<path class="link severed" d="%s"><title>%s</title></path>`, path, escape(f.Letter+": "+clip(f.Text, 200)))
			continue
		}
		for _, i := range named {
			broken[i] = true
		}
	}
	type label struct {
		text, class string
		at          spot
	}
	var moved []label
	for i, c := range r.Clients {
		by, failing, asked := servedIn(r, p, i)
		was := by
		if k > 0 {
			was, _, _ = servedIn(r, all[k-1], i)
		}
		if s := siteOf(r, by, true); s >= 0 && !failing {
			path, _ := d.arc(w, c.Lat, c.Lon, r.Sites[s].Lat, r.Sites[s].Lon, clients[i], sites[s])
			class := "served"
			if by != was && was != "" {
				class = "served moved"
				moved = append(moved, label{c.Name, "who halo", clients[i]})
			}
			d.add(`<path class="%s %s" d="%s"/>`, class, hue(index(pop, by)), path)
		}
		switch title := escape(c.Name + ": " + told(by, failing, asked)); {
		case failing:
			d.add(`<path class="lost" d="M%s %sl7 7m0-7l-7 7"><title>%s</title></path>`, n(clients[i].x-3.5), n(clients[i].y-3.5), title)
			moved = append(moved, label{c.Name, "who halo bad", clients[i]})
		default:
			d.add(`<circle class="client" cx="%s" cy="%s" r="3"><title>%s</title></circle>`, n(clients[i].x), n(clients[i].y), title)
		}
	}
	for i := range r.Sites {
		d.site(r, i, sites[i], pop, broken[i])
	}
	for i, s := range r.Sites {
		name := clip(s.Name, 16)
		if x, y, ok := d.place(name, 11.5, sites[i], 9, len(r.Sites) <= 12); ok {
			d.text("name halo", "start", x, y, name)
		}
	}
	for _, m := range moved {
		if x, y, ok := d.place(clip(m.text, 20), 11, m.at, 5, false); ok {
			d.text(m.class, "start", x, y, clip(m.text, 20))
		}
	}
	return d.String()
}

// told is who served a client, in words.
func told(by string, failing, asked bool) string {
	switch {
	case !asked:
		return "did not ask"
	case failing:
		return "no answer"
	case by == "":
		return "served"
	}
	return by
}
