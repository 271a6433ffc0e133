package zonefile

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// maxGenerated is how many records one $GENERATE makes at most, and maxWidth how wide a number in them is padded.
const (
	maxGenerated = 65_536
	maxWidth     = 253
)

// generate makes records that differ by a number, as BIND's $GENERATE does: a range (1-9, 0-30/2), the owner, perhaps a TTL and
// a class, the type and the data. In owner and data $ is the number, ${offset,width,base} what it says of it, and \$ or $$ a $.
func (r *reader) generate(args []string) {
	const field = "$GENERATE"
	start, stop, step, ok := parseRange(args[0])
	if !ok {
		r.fault(field, "the range must be like 1-9 or 0-30/2, of numbers up to %d, not %.40q", math.MaxInt32, args[0])
		return
	}
	if count := (stop-start)/step + 1; count > maxGenerated {
		r.fault(field, "makes %d records: at most %d", count, maxGenerated)
		return
	}
	told := len(r.faults) + r.more
	for n := start; n <= stop && r.total <= maxRecords; n += step {
		words := make([]string, 0, len(args))
		for _, arg := range args[1:] {
			word, problem := substitute(arg, n)
			if problem != "" {
				r.fault(field, "%s", problem)
				return
			}
			words = append(words, word)
		}
		last := words[len(words)-1]
		if typ := strings.ToUpper(words[len(words)-2]); quoted(last) && typ != "TXT" && typ != "SPF" {
			// All data may be one word in quotes.
			e, _ := (&lexer{text: strings.ReplaceAll(last[1:len(last)-1], `\"`, `"`), line: r.line}).next()
			if e.problem != "" {
				r.fault(field, "%s", e.problem)
				return
			}
			words = append(words[:len(words)-1], e.words...)
		}
		r.entry(entry{line: r.line, words: words})
		if len(r.faults)+r.more > told {
			return // the others would be as wrong
		}
	}
}

func parseRange(text string) (start, stop, step int, ok bool) {
	text, stride, strides := strings.Cut(text, "/")
	if !strides {
		stride = "1"
	}
	first, last, two := strings.Cut(text, "-")
	a, err1 := strconv.ParseUint(first, 10, 31)
	b, err2 := strconv.ParseUint(last, 10, 31)
	c, err3 := strconv.ParseUint(stride, 10, 31)
	ok = two && err1 == nil && err2 == nil && err3 == nil && a <= b && c > 0
	return int(a), int(b), int(c), ok
}

// substitute puts the number into a word.
func substitute(word string, n int) (result, problem string) {
	var b strings.Builder
	for i := 0; i < len(word); i++ {
		switch {
		case word[i] == '\\' && i+1 < len(word):
			if word[i+1] != '$' {
				b.WriteByte('\\')
			}
			i++
			b.WriteByte(word[i])
		case word[i] != '$':
			b.WriteByte(word[i])
		case strings.HasPrefix(word[i:], "$$"):
			i++
			b.WriteByte('$')
		case strings.HasPrefix(word[i:], "${"):
			form, _, closed := strings.Cut(word[i+2:], "}")
			text, ok := modify(form, n)
			if !closed || !ok {
				return "", fmt.Sprintf("must have ${offset,width,base}, base one of d, o, x, X, n and N, width up to %d, not %.40q", maxWidth, word[i:])
			}
			b.WriteString(text)
			i += len(form) + 2
		default:
			b.WriteString(strconv.Itoa(n))
		}
	}
	return b.String(), ""
}

// modify is the number as offset, width and base say.
func modify(form string, n int) (text string, ok bool) {
	parts := strings.Split(form, ",")
	offset, err := strconv.ParseInt(parts[0], 10, 32)
	if err != nil || len(parts) > 3 {
		return "", false
	}
	n += int(offset)
	width, base := uint64(0), "d"
	if len(parts) > 1 {
		if width, err = strconv.ParseUint(parts[1], 10, 32); err != nil || width > maxWidth {
			return "", false
		}
	}
	if len(parts) > 2 {
		base = parts[2]
	}
	switch base {
	case "d", "o", "x", "X":
		return fmt.Sprintf("%0"+strconv.Itoa(int(width))+base, n), true
	case "n", "N":
		return nibbles(uint32(n), int(width), base == "N"), true
	}
	return "", false
}

// nibbles are the hexadecimal digits, the last first, each a label, as names under ip6.arpa have them. The width counts
// the dots too.
func nibbles(n uint32, width int, capital bool) string {
	var b strings.Builder
	for {
		digit := strconv.FormatUint(uint64(n&15), 16)
		if capital {
			digit = strings.ToUpper(digit)
		}
		b.WriteString(digit)
		n >>= 4
		if width -= 1; n == 0 && width <= 0 {
			return b.String()
		}
		b.WriteByte('.')
		width--
		if n == 0 && width <= 0 {
			return b.String()
		}
	}
}
