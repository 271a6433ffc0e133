package cache

import (
	"cmp"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

// vary reads a response's Vary (RFC 9110 §12.5.5): the names of request fields that selected it, canonical and
// sorted, or any: something that is in no field. A coded response is taken to vary by Accept-Encoding also where the
// origin forgot to say so, for else a viewer would get a coding it cannot read.
func vary(h http.Header) (names []string, any bool) {
	for _, line := range h["Vary"] {
		for name := range strings.SplitSeq(line, ",") {
			switch name = trim(name); name {
			case "":
			case "*":
				return nil, true
			default:
				names = append(names, http.CanonicalHeaderKey(name))
			}
		}
	}
	if len(h["Content-Encoding"]) > 0 {
		names = append(names, "Accept-Encoding")
	}
	slices.Sort(names)
	return slices.Compact(names), false
}

// canonical is the value of a field that may be a list, as one line: however a viewer spreads it over lines and spaces
// it, it means the same (RFC 9111 §4.1), and the origin is sent this form, so that what it may answer by is in the key.
// Of Accept-Language and Accept-Charset also the case and the order make no difference: weights order them
// (RFC 9110 §12.5.4).
func canonical(name string, lines []string) string {
	if len(lines) == 0 {
		return ""
	}
	weighted := name == "Accept-Language" || name == "Accept-Charset"
	if len(lines) == 1 && !weighted && plainLine(lines[0]) {
		return lines[0]
	}
	var members []string
	for _, line := range lines {
		members = appendMembers(members, line)
	}
	if weighted {
		members = byWeight(members)
	}
	return strings.TrimRight(strings.Join(members, ", "), " ")
}

// plainLine says whether a line is in canonical form already, as nearly all are: no list and no space at its ends.
func plainLine(line string) bool {
	return strings.IndexByte(line, ',') < 0 && line == trim(line)
}

// appendMembers cuts a line at the commas that stand in no quoted string; one that does not end is the rest. Empty members
// stay: of a field that is not known they may mean something.
func appendMembers(members []string, line string) []string {
	start, quoted := 0, false
	for i := 0; i < len(line); i++ {
		switch c := line[i]; {
		case c == '"':
			quoted = !quoted
		case c == '\\' && quoted:
			i++
		case c == ',' && !quoted:
			members = append(members, trim(line[start:i]))
			start = i + 1
		}
	}
	return append(members, trim(line[start:]))
}

// maxWishes is how many preferences are brought in order: more, which no one means, stay as they are.
const maxWishes = 64

// byWeight is the members of a field of preferences, the most wanted first, those of one weight by name. One that does
// not read as a name and a weight leaves them all as they are.
func byWeight(members []string) []string {
	if len(members) > maxWishes {
		return members
	}
	type wish struct {
		name   string
		weight int // in thousandths
	}
	wishes := make([]wish, 0, len(members))
	for _, m := range members {
		if m == "" {
			continue
		}
		name, parameter, has := strings.Cut(strings.ToLower(m), ";")
		weight, ok := 1000, true
		if has {
			weight, ok = thousandths(trim(parameter))
		}
		if !ok {
			return members
		}
		wishes = append(wishes, wish{trim(name), weight})
	}
	slices.SortStableFunc(wishes, func(a, b wish) int {
		return cmp.Or(cmp.Compare(b.weight, a.weight), cmp.Compare(a.name, b.name))
	})
	sorted := make([]string, len(wishes))
	for i, w := range wishes {
		sorted[i] = w.name
		if w.weight != 1000 {
			sorted[i] += ";q=" + strings.TrimSuffix(strings.TrimRight(fmt.Sprintf("%d.%03d", w.weight/1000, w.weight%1000), "0"), ".")
		}
	}
	return sorted
}

// thousandths reads a weight: q=1, q=0.5 (RFC 9110 §12.4.2).
func thousandths(parameter string) (weight int, ok bool) {
	digits, ok := strings.CutPrefix(parameter, "q=")
	whole, fraction, _ := strings.Cut(digits, ".")
	if !ok || whole != "0" && whole != "1" || len(fraction) > 3 {
		return 0, false
	}
	n, err := strconv.ParseUint(whole+(fraction + "000")[:3], 10, 16)
	return int(n), err == nil && n <= 1000
}

// selecting is what of a response's Vary can select it: the fields that the origin is sent under the policy. The others were the same
// to the origin, none, whatever a viewer says. So they are few, whatever an origin names.
func (p *Policy) selecting(h http.Header) []string {
	names, _ := vary(h)
	return slices.DeleteFunc(names, func(name string) bool {
		return name != "Accept-Encoding" && !slices.Contains(p.headers, name) && !(name == "Cookie" && p.KeysCookies())
	})
}

// secondary is the secondary key of a request by the fields named (RFC 9111 §4.1), in the canonical form of Key.
func (p *Policy) secondary(names []string, h http.Header) string {
	var space [256]byte
	b := space[:0]
	for _, name := range names {
		if value := p.Field(h, name); value != "" {
			b = appendLine(b, name, value)
		}
	}
	return string(b)
}
