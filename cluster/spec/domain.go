package spec

import (
	"errors"
	"fmt"
	"strings"
)

// Bounds of a domain name (RFC 1035, section 2.3.4), as text without its trailing dot.
const (
	longestName  = 253
	longestLabel = 63
)

// Owner is the absolute name of a record's name in the zone, in small letters and with its trailing dot. Its bytes are
// escaped where zone files need it, and nowhere else.
func (z *HostedZone) Owner(name string) string {
	if strings.IndexByte(name, '\\') >= 0 {
		name = plainest(name)
	}
	name = strings.ToLower(name)
	switch {
	case name == "@":
		return z.Name + "."
	case endsInDot(name):
		return name
	}
	return name + "." + z.Name + "."
}

// Owns says whether a record's name has an owner: Owner makes that of it. It takes no memory, as a rule, and nearly no time where not.
func (z *HostedZone) Owns(name, owner string) bool {
	if name == "@" || strings.IndexByte(name, '\\') >= 0 || !isASCII(name) {
		return z.Owner(name) == owner
	}
	absolute := len(name) == len(owner) && endsInDot(name)
	if !absolute && len(name)+len(z.Name)+2 != len(owner) {
		return false
	}
	for i := range len(name) {
		c := name[i]
		if c >= 'A' && c <= 'Z' {
			c |= 0x20
		}
		if owner[i] != c {
			return false
		}
	}
	rest := owner[len(name):]
	return absolute || !endsInDot(name) && rest[0] == '.' && rest[1:len(rest)-1] == z.Name && rest[len(rest)-1] == '.'
}

func isASCII(text string) bool {
	for i := range len(text) {
		if text[i] >= 0x80 {
			return false
		}
	}
	return true
}

// Relative is the name of a record, which Owner makes the owner of: @ at the apex, and absolute where the zone's name
// again at its end would look like a mistake. The owner must be in the zone.
func (z *HostedZone) Relative(owner string) string {
	if owner == z.Name+"." {
		return "@"
	}
	name := strings.TrimSuffix(owner, "."+z.Name+".")
	if name == z.Name || strings.HasSuffix(name, "."+z.Name) {
		return owner
	}
	return name
}

// encloses says whether an owner is the zone's name or below it.
func (z *HostedZone) encloses(owner string) bool {
	above, ok := strings.CutSuffix(owner, z.Name+".")
	return ok && (above == "" || endsInDot(above))
}

// endsInDot says whether text ends in a dot that ends a label: one that is not escaped.
func endsInDot(text string) bool {
	before, ok := strings.CutSuffix(text, ".")
	return ok && (len(before)-len(strings.TrimRight(before, `\`)))%2 == 0
}

// absolute gives a domain name its trailing dot.
func absolute(name string) string {
	if name == "" || endsInDot(name) {
		return name
	}
	return name + "."
}

// domainProblem is why a name is not a domain name, or "". It may have a trailing dot. Names of services begin labels
// with underscores.
func domainProblem(name string) string {
	name = strings.TrimSuffix(name, ".")
	if len(name) > longestName {
		return fmt.Sprintf("it is longer than %d bytes", longestName)
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" {
			return "a label is empty"
		}
		if len(label) > longestLabel {
			return fmt.Sprintf("a label is longer than %d bytes", longestLabel)
		}
		if i := strings.IndexFunc(label, func(r rune) bool { return r > 0x7f || !plainByte(byte(r)) }); i >= 0 {
			return fmt.Sprintf("%q is neither letter, digit, hyphen nor underscore", []rune(label[i:])[0])
		}
	}
	return ""
}

func plainByte(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_'
}

// ParseDomain reads a domain name as records have it, their own and those in their values: as a host's, or with a slash
// (RFC 2317), an asterisk as the first label, and any other byte as \. or \046 (RFC 1035, section 5.1). The name comes
// back with each such byte as \ddd, and with its trailing dot if it had one.
func ParseDomain(name string) (canonical string, err error) {
	canonical, problem := parseDomain(name)
	if problem != "" {
		return "", errors.New(problem)
	}
	return canonical, nil
}

func parseDomain(name string) (canonical, problem string) {
	if strings.IndexByte(name, '\\') < 0 {
		hosts := strings.ReplaceAll(strings.TrimPrefix(name, "*."), "/", "-")
		return name, domainProblem(hosts)
	}
	labels, problem := labelsOf(name)
	if problem != "" {
		return "", problem
	}
	var b strings.Builder
	for i, label := range labels {
		if i > 0 {
			b.WriteByte('.')
		}
		for _, c := range []byte(label) {
			if plainByte(c) || c == '/' || label == "*" && i == 0 {
				b.WriteByte(c)
			} else {
				fmt.Fprintf(&b, `\%03d`, c)
			}
		}
	}
	if endsInDot(name) {
		b.WriteByte('.')
	}
	return b.String(), ""
}

// labelsOf are the labels of a name as bytes.
func labelsOf(name string) (labels []string, problem string) {
	if endsInDot(name) {
		name = name[:len(name)-1]
	}
	var label []byte
	size := 0
	for i := 0; ; i++ {
		if i == len(name) || name[i] == '.' {
			size += len(label) + 1
			switch {
			case len(label) == 0:
				return nil, "a label is empty"
			case len(label) > longestLabel:
				return nil, fmt.Sprintf("a label is longer than %d bytes", longestLabel)
			case size > longestName+1:
				return nil, fmt.Sprintf("it is longer than %d bytes", longestName)
			}
			labels, label = append(labels, string(label)), label[:0]
			if i == len(name) {
				return labels, ""
			}
			continue
		}
		c, length := name[i], 1
		if c == '\\' {
			if c, length = unescape(name[i:]); length == 0 {
				return nil, badEscape
			}
		} else if !plainByte(c) && c != '/' && (c != '*' || size > 0 || !strings.HasPrefix(name, "*.")) {
			return nil, fmt.Sprintf("%q is neither letter, digit, hyphen nor underscore", []rune(name[i:])[0])
		}
		label = append(label, c)
		i += length - 1
	}
}

const badEscape = `has a \ that is not followed by three decimal digits up to 255`

// unescape reads the byte that a backslash at the beginning of text stands for: that which follows, or the value of
// three decimal digits (RFC 1035, section 5.1). A length of 0 is neither.
func unescape(text string) (c byte, length int) {
	if len(text) < 2 {
		return 0, 0
	}
	if text[1] < '0' || text[1] > '9' {
		return text[1], 2
	}
	if len(text) < 4 || !isNumber(text[1:4], 8) {
		return 0, 0
	}
	value := 0
	for _, digit := range []byte(text[1:4]) {
		value = value*10 + int(digit-'0')
	}
	return byte(value), 4
}

// plainest is a name with backslashes where its bytes need them only, as those who read it from a message write it. A name
// that is none stays what it is.
func plainest(name string) string {
	labels, problem := labelsOf(name)
	if problem != "" {
		return name
	}
	var b strings.Builder
	for i, label := range labels {
		if i > 0 {
			b.WriteByte('.')
		}
		for _, c := range []byte(label) {
			switch {
			case strings.IndexByte(`. '@;()"\`, c) >= 0:
				b.WriteByte('\\')
				b.WriteByte(c)
			case c < ' ' || c > '~':
				fmt.Fprintf(&b, `\%03d`, c)
			default:
				b.WriteByte(c)
			}
		}
	}
	if endsInDot(name) {
		b.WriteByte('.')
	}
	return b.String()
}
