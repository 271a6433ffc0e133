package spec

import (
	"bytes"
	"hash/maphash"
	"slices"
	"strings"
)

// MayUpdate says whether who signs by a key may change the records of a name and type. The owner is as Owner makes it.
func (z *HostedZone) MayUpdate(key, owner, typ string) bool {
	return slices.ContainsFunc(z.Update.Allow, func(a UpdateAllow) bool { return a.Key == key && a.names(z, owner) && a.types(typ) })
}

// MayUpdateSome says whether there is anything in the zone that who signs by a key may change, or with an owner, at that name.
func (z *HostedZone) MayUpdateSome(key, owner string) bool {
	return slices.ContainsFunc(z.Update.Allow, func(a UpdateAllow) bool { return a.Key == key && (owner == "" || a.names(z, owner)) })
}

func (a *UpdateAllow) names(z *HostedZone, owner string) bool {
	return len(a.Names) == 0 || slices.ContainsFunc(a.Names, func(name string) bool {
		allowed := z.Owner(name)
		if below, ok := strings.CutPrefix(allowed, "*."); ok {
			before, is := strings.CutSuffix(owner, below)
			return is && before != "" && endsInDot(before)
		}
		return owner == allowed
	})
}

func (a *UpdateAllow) types(typ string) bool {
	if len(a.Types) == 0 {
		return !isOfParents(typ)
	}
	return slices.Contains(a.Types, typ)
}

// update judges who may change the zone by messages.
func (c check) update(z *HostedZone) {
	zc := zoneCheck{check: c, zone: z}
	for i := range z.Update.Allow {
		a, field := &z.Update.Allow[i], at("update.allow", i)
		c.tsig(field+".key", a.Key)
		for j, name := range a.Names {
			zc.within(at(field+".names", j), name)
		}
		for j, typ := range a.Types {
			if !IsRecordType(typ) {
				c.fault(at(field+".types", j), "%.40q is not a type of records here: there are %s", typ, list(recordTypes, "and"))
			}
		}
	}
}

// Rewritten is the document of a zone after a change of its records: of each record of new, from is the place in old of the one that
// it is or takes the place of, in the same order, or −1 for those that are new, at the end. Where the records of the document stand
// each on lines of their own, those lines change and no others, so that comments stay; else it is false, and nothing is returned.
// Whoever uses it compares what the document means with new.
func Rewritten(d Document, old, new *HostedZone, from []int) ([]byte, bool) {
	if l := old.layout; l != nil && len(from) == new.Records.Len() && maphash.Bytes(layoutSeed, d.Bytes) == l.digest {
		return l.rewritten(d.Bytes, old.Records, new.Records, from)
	}
	root, unreadable := read(d.Bytes, 1)
	if unreadable != nil || bytes.IndexByte(d.Bytes, '\r') >= 0 {
		return nil, false
	}
	list := root.field("records")
	if list == nil || len(list.items) != old.Records.Len() || len(list.items) == 0 || len(from) != new.Records.Len() {
		return nil, false
	}
	lines := bytes.SplitAfter(d.Bytes, []byte("\n"))
	if last := lines[len(lines)-1]; len(last) == 0 {
		lines = lines[:len(lines)-1]
	} else {
		lines[len(lines)-1] = append(bytes.Clone(last), '\n')
	}
	indent, begins := -1, make([]int, len(list.items)+1) // the first line of each item, from 0
	for i, item := range list.items {
		line := item.line - 1
		if line < 0 || line >= len(lines) {
			return nil, false
		}
		text := lines[line]
		column := len(text) - len(bytes.TrimLeft(text, " "))
		if !bytes.HasPrefix(text[column:], []byte("- ")) || indent >= 0 && column != indent || i > 0 && line <= begins[i-1] {
			return nil, false
		}
		begins[i], indent = line, column
	}
	// An item ends with the last line that is indented more than its dash; what follows is of no item, or of the next.
	end := func(i int) int {
		stop := len(lines)
		if i+1 < len(list.items) {
			stop = begins[i+1]
		}
		last := begins[i] + 1
		for n := last; n < stop; n++ {
			text := bytes.TrimLeft(lines[n], " ")
			if column := len(lines[n]) - len(text); column > indent && text[0] != '#' && text[0] != '\n' {
				last = n + 1
			}
		}
		return last
	}
	var out bytes.Buffer
	write := func(r *Record) {
		out.WriteString(strings.Repeat(" ", indent) + "- " + Flow(r) + "\n")
	}
	at, next := 0, 0
	was, is := old.Records.List(), new.Records.List()
	for i := range was {
		for ; at < begins[i]; at++ {
			out.Write(lines[at])
		}
		after := end(i)
		switch {
		case next == len(from) || from[next] != i: // it is gone
			at = after
		case was[i].Equal(&is[next]):
			next++
			for ; at < after; at++ {
				out.Write(lines[at])
			}
		default:
			write(&is[next])
			next++
			at = after
		}
	}
	for ; next < len(from); next++ {
		if from[next] >= 0 {
			return nil, false
		}
		write(&is[next])
	}
	for ; at < len(lines); at++ {
		out.Write(lines[at])
	}
	return out.Bytes(), true
}

// rewritten is Rewritten of a document whose layout is known: only what changes in it is looked at.
func (l *layout) rewritten(doc []byte, old, new Records, from []int) ([]byte, bool) {
	out, done, next := make([]byte, 0, len(doc)+1<<10), 0, 0
	var room textRoom
	a, b := old.from(0), new.from(0)
	write := func() {
		r := b.record(&room)
		out = append(out, strings.Repeat(" ", l.column)+"- "+Flow(&r)+"\n"...)
		b.next()
		next++
	}
	for ; a.ok(); a.next() {
		gone := next == len(from) || from[next] != a.place
		if !gone && a.same(b) {
			b.next()
			next++
			continue
		}
		out = append(out, doc[done:l.line(a.place)]...)
		if done = l.after(doc, a.place); !gone {
			write()
		}
	}
	if next < len(from) {
		end := l.after(doc, old.count-1)
		out = append(out, doc[done:max(done, end)]...)
		done = max(done, end)
	}
	for next < len(from) {
		if from[next] >= 0 {
			return nil, false
		}
		write()
	}
	return append(out, doc[done:]...), true
}

// after is where record i ends in its document: behind the last line that is indented more than its dash; comments there are of no record, or of
// the next.
func (l *layout) after(doc []byte, i int) int {
	begin, stop := l.line(i), l.line(i+1)
	end := 0
	for at := begin; at < stop; {
		line := doc[at:stop]
		if n := bytes.IndexByte(line, '\n'); n >= 0 {
			line = line[:n+1]
		}
		text := bytes.TrimLeft(line, " ")
		if at += len(line); end == 0 || len(line)-len(text) > l.column && text[0] != '#' && text[0] != '\n' {
			end = at
		}
	}
	return end
}
