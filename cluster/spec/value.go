package spec

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// recordTypes are those that the rule of Record's type lists.
var recordTypes = func() []string {
	field, _ := reflect.TypeFor[Record]().FieldByName("Type")
	_, words, _ := strings.Cut(field.Tag.Get("rule"), ",")
	return strings.Split(words, "|")
}()

// RecordTypes are the types that records can have, by the alphabet. SOA is not among them: every zone has one, made for it.
func RecordTypes() []string { return slices.Clone(recordTypes) }

// IsRecordType says whether records can have a type.
func IsRecordType(typ string) bool { return slices.Contains(recordTypes, typ) }

// ParseValue reads one value of a record of a type, in the form of zone files (RFC 1035, section 5, and the RFC of each
// type); the canonical form has its domain names absolute, its numbers without leading zeros, its texts in double quotes
// and its hexadecimal digits small and together. A type that there is not is an error.
func ParseValue(typ, value string) (canonical string, err error) {
	if !IsRecordType(typ) {
		return "", fmt.Errorf("%.40q is not a type of records here", typ)
	}
	canonical, problem := parseValue(typ, value)
	if problem != "" {
		return "", errors.New(problem)
	}
	return canonical, nil
}

// completeValue is a value as parseValue has it, or as it is where it is not right.
func completeValue(typ, value string) string {
	if canonical, problem := parseValue(typ, value); problem == "" {
		return canonical
	}
	return value
}

func parseValue(typ, value string) (canonical, problem string) {
	const longest = 4000 // bytes of one value, as Route 53 takes
	if len(value) > longest {
		return "", fmt.Sprintf("is %d bytes long: at most %d", len(value), longest)
	}
	switch typ {
	case "A", "AAAA":
		return address(typ, value)
	case "TXT", "SPF":
		return textStrings(value)
	}
	words, problem := splitWords(value)
	if problem != "" {
		return "", problem
	}
	wrong := func(form string) (string, string) { return "", fmt.Sprintf("must be %s, not %.80q", form, value) }
	switch typ {
	case "CNAME", "DNAME", "NS", "PTR":
		if len(words) != 1 {
			return wrong("one domain name")
		}
		return target(words[0], false)
	case "MX":
		if len(words) != 2 || !numbers(words[:1], 16) {
			return wrong("a preference and a host, like 10 mail.example.com.")
		}
		return withName(words, 1)
	case "SRV":
		if len(words) != 4 || !numbers(words[:3], 16) {
			return wrong("a priority, a weight, a port and a host, like 0 5 443 www.example.com.")
		}
		return withName(words, 3)
	case "CAA":
		if len(words) != 3 || !numbers(words[:1], 8) || !isTag(words[1]) || !isQuoted(words[2]) {
			return wrong(`flags, a tag and a value in double quotes, like 0 issue "ca.example.net"`)
		}
		return caa(words)
	case "DS":
		if len(words) < 4 || !numbers(words[:1], 16) || !numbers(words[2:3], 8) {
			return wrong("a key tag, an algorithm, a digest type and a digest, like 12345 13 2 9f86…")
		}
		return ds(words)
	case "SSHFP":
		if len(words) < 3 || !numbers(words[:2], 8) {
			return wrong("an algorithm, a type and a fingerprint, like 4 2 9f86…")
		}
		return sshfp(words)
	case "TLSA":
		if len(words) < 4 || !numbers(words[:3], 8) {
			return wrong("a usage, a selector, a matching type and data, like 3 1 1 9f86…")
		}
		return tlsa(words)
	case "NAPTR":
		if len(words) != 6 || !numbers(words[:2], 16) {
			return wrong(`an order, a preference, flags, a service, an expression and a name, like 10 100 "s" "SIP+D2U" "" _sip._udp.example.com.`)
		}
		return naptr(words)
	case "SVCB", "HTTPS":
		if len(words) < 2 || !numbers(words[:1], 16) {
			return wrong("a priority, a target and parameters, like 1 . alpn=h2,h3")
		}
		return svcb(words)
	}
	return value, "" // the type's own fault is told
}

func address(typ, value string) (canonical, problem string) {
	a, err := netip.ParseAddr(value)
	if err != nil || a.Is4() != (typ == "A") || a.Zone() != "" {
		return "", fmt.Sprintf("must be an %s address, not %.80q", map[string]string{"A": "IPv4", "AAAA": "IPv6"}[typ], value)
	}
	return a.String(), ""
}

// splitWords splits a value at white space. What begins with a double quote ends at the next one; white space in quotes
// within a word separates nothing. Escapes are left as they are.
func splitWords(value string) (words []string, problem string) {
	isSpace := func(c byte) bool { return c == ' ' || c == '\t' || c == '\n' || c == '\r' }
	for i := 0; i < len(value); {
		if isSpace(value[i]) {
			i++
			continue
		}
		start, open := i, value[i] == '"'
		for i++; i < len(value) && (open || !isSpace(value[i])); i++ {
			switch value[i] {
			case '\\':
				_, length := unescape(value[i:])
				if length == 0 {
					return nil, badEscape
				}
				i += length - 1
				continue
			case '"':
				open = !open
			}
			if !open && value[start] == '"' {
				i++
				break
			}
		}
		if open {
			return nil, "has a double quote that is never closed"
		}
		words = append(words, value[start:i])
	}
	return words, ""
}

func isNumber(text string, bits int) bool {
	_, err := strconv.ParseUint(text, 10, bits)
	return err == nil
}

// numbers says whether words are numbers of so many bits, and writes them without leading zeros.
func numbers(words []string, bits int) bool {
	for i, word := range words {
		n, err := strconv.ParseUint(word, 10, bits)
		if err != nil {
			return false
		}
		words[i] = strconv.FormatUint(n, 10)
	}
	return true
}

// withName makes one of the words an absolute domain name. The root means that there is no such service.
func withName(words []string, at int) (canonical, problem string) {
	words[at], problem = target(words[at], true)
	return strings.Join(words, " "), problem
}

// target reads a domain name in a value: it is absolute, with or without its trailing dot. One word alone would be
// relative to the zone elsewhere, so it is refused.
func target(name string, root bool) (canonical, problem string) {
	if name == "." && root {
		return name, ""
	}
	canonical, problem = parseDomain(name)
	if problem != "" {
		return "", fmt.Sprintf("%.80q is not a domain name: %s", name, problem)
	}
	if !strings.Contains(canonical, ".") { // an escaped one is \046 there
		return "", fmt.Sprintf("%.80q must be a whole name, like www.example.com (names in values are not relative to the zone)", name)
	}
	return absolute(canonical), ""
}

func isQuoted(word string) bool { return strings.HasPrefix(word, `"`) }

// unquote is the bytes of a word, in double quotes or not, whose escapes are right.
func unquote(word string) string {
	if isQuoted(word) {
		word = word[1 : len(word)-1]
	}
	if strings.IndexByte(word, '\\') < 0 {
		return word
	}
	var b []byte
	for i := 0; i < len(word); i++ {
		c, length := word[i], 1
		if c == '\\' {
			c, length = unescape(word[i:])
		}
		b = append(b, c)
		i += length - 1
	}
	return string(b)
}

// quote is bytes in double quotes, with \ before what needs it and \ddd for what cannot be seen.
func quote(text string) string {
	b := make([]byte, 0, len(text)+2)
	b = append(b, '"')
	for _, c := range []byte(text) {
		switch {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case c < ' ' || c > '~':
			b = fmt.Appendf(b, `\%03d`, c)
		default:
			b = append(b, c)
		}
	}
	return string(append(b, '"'))
}

// characterString is one word as a character string (RFC 1035, section 3.3), quoted.
func characterString(word string) (canonical, problem string) {
	const longest = 255
	text := unquote(word)
	if len(text) > longest {
		return "", fmt.Sprintf("has a string of %d bytes: at most %d each, several in quotes of their own", len(text), longest)
	}
	return quote(text), ""
}

// textStrings reads the strings of a TXT record.
func textStrings(value string) (canonical, problem string) {
	words, problem := splitWords(value)
	if problem != "" {
		return "", problem
	}
	if len(words) == 0 || slices.ContainsFunc(words, func(w string) bool { return !isQuoted(w) }) {
		return "", fmt.Sprintf(`must be in double quotes within quotes, like '"v=spf1 -all"', not %.80q`, value)
	}
	for i, word := range words {
		if words[i], problem = characterString(word); problem != "" {
			return "", problem
		}
	}
	return strings.Join(words, " "), ""
}

func isTag(word string) bool {
	return word != "" && len(word) <= 15 && !strings.ContainsFunc(word, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9')
	})
}

// caa reads a certification authority's authorisation (RFC 8659, section 4). Tags are the same in any case.
func caa(words []string) (canonical, problem string) {
	words[1] = strings.ToLower(words[1])
	text := unquote(words[2])
	switch words[1] {
	case "issue", "issuewild", "issuemail":
		issuer, _, _ := strings.Cut(text, ";")
		if issuer = strings.Trim(issuer, " \t"); issuer != "" && domainProblem(issuer) != "" {
			return "", fmt.Sprintf("%.80q is not the domain name of a certification authority; a single ; is none of them", issuer)
		}
	case "iodef":
		if scheme, _, _ := strings.Cut(text, ":"); scheme != "mailto" && scheme != "http" && scheme != "https" {
			return "", fmt.Sprintf("%.80q must be a URL that begins with mailto:, http: or https:", text)
		}
	}
	words[2], problem = characterString(words[2])
	return strings.Join(words, " "), problem
}

// hexadecimal joins the words from at on, which are one number in hexadecimal digits; bytes is how long it must be, or
// 0 for any length but none.
func hexadecimal(words []string, at, bytes int, what string) (canonical, problem string) {
	digits := strings.ToLower(strings.Join(words[at:], ""))
	data, err := hex.DecodeString(digits)
	switch {
	case err != nil || len(data) == 0:
		return "", fmt.Sprintf("the %s must be pairs of hexadecimal digits, not %.80q", what, digits)
	case bytes != 0 && len(data) != bytes:
		return "", fmt.Sprintf("the %s has %d bytes: of its type it has %d", what, len(data), bytes)
	}
	return strings.Join(append(words[:at:at], digits), " "), ""
}

// algorithms are the DNSSEC algorithms by their mnemonics (IANA, from RFC 8624), which zone files may use.
var algorithms = map[string]string{
	"DSA": "3", "RSASHA1": "5", "DSA-NSEC3-SHA1": "6", "RSASHA1-NSEC3-SHA1": "7", "RSASHA256": "8", "RSASHA512": "10",
	"ECC-GOST": "12", "ECDSAP256SHA256": "13", "ECDSAP384SHA384": "14", "ED25519": "15", "ED448": "16",
}

// ds reads a delegation signer (RFC 4034, section 5.3; digest types from RFC 4509, 5933, 6605 and 9558).
func ds(words []string) (canonical, problem string) {
	if number, ok := algorithms[strings.ToUpper(words[1])]; ok {
		words[1] = number
	}
	if !numbers(words[1:2], 8) || words[1] == "0" {
		return "", fmt.Sprintf("%.40q is not an algorithm of DNSSEC", words[1])
	}
	lengths := map[string]int{"1": 20, "2": 32, "3": 32, "4": 48, "5": 32, "6": 32}
	length, known := lengths[words[2]]
	if !known {
		return "", fmt.Sprintf("%s is not a digest type: 2 is SHA-256, 4 is SHA-384", words[2])
	}
	return hexadecimal(words, 3, length, "digest")
}

// sshfp reads the fingerprint of a host's key (RFC 4255; IANA's algorithms from RFC 6594, 7479 and 8709).
func sshfp(words []string) (canonical, problem string) {
	lengths := map[string]int{"1": 20, "2": 32}
	switch length, known := lengths[words[1]]; {
	case !slices.Contains([]string{"1", "2", "3", "4", "6"}, words[0]):
		return "", fmt.Sprintf("%s is not an algorithm: 1 is RSA, 3 ECDSA, 4 Ed25519, 6 Ed448", words[0])
	case !known:
		return "", fmt.Sprintf("%s is not a type of fingerprint: 1 is SHA-1, 2 is SHA-256", words[1])
	default:
		return hexadecimal(words, 2, length, "fingerprint")
	}
}

// tlsa reads a certificate association (RFC 6698, section 2; 255 is for private use).
func tlsa(words []string) (canonical, problem string) {
	for i, field := range []struct {
		name  string
		known []string
	}{
		{"usage", []string{"0", "1", "2", "3", "255"}},
		{"selector", []string{"0", "1", "255"}},
		{"matching type", []string{"0", "1", "2", "255"}},
	} {
		if !slices.Contains(field.known, words[i]) {
			return "", fmt.Sprintf("%s is not a %s: there are %s", words[i], field.name, list(field.known, "and"))
		}
	}
	return hexadecimal(words, 3, map[string]int{"1": 32, "2": 64}[words[2]], "data")
}

// naptr reads a naming authority pointer (RFC 3403, section 4): flags are letters and digits, and of the expression and
// the replacement exactly one is there. The flags that are in use (RFC 3404, 3958) say which.
func naptr(words []string) (canonical, problem string) {
	for i := 2; i < 5; i++ {
		if words[i], problem = characterString(words[i]); problem != "" {
			return "", problem
		}
	}
	flags, expression := strings.ToLower(unquote(words[2])), unquote(words[4])
	if strings.ContainsFunc(flags, func(r rune) bool { return (r < 'a' || r > 'z') && (r < '0' || r > '9') }) {
		return "", fmt.Sprintf("the flags must be letters and digits, not %s", words[2])
	}
	switch replaces := words[5] != "."; {
	case expression != "" && replaces:
		return "", "has both an expression and a name in its place: the name must then be ."
	case expression == "" && !replaces:
		return "", "has neither an expression nor a name in its place"
	case flags == "u" && expression == "":
		return "", `the flag "u" needs an expression that makes a URI`
	case (flags == "s" || flags == "a") && !replaces && expression == "":
		return "", fmt.Sprintf("the flag %s needs a name", words[2])
	}
	if expression != "" && !isSubstitution(expression) {
		return "", fmt.Sprintf("the expression must be like !^.*$!sip:info@example.com!, not %.80q", expression)
	}
	return withName(words, 5)
}

// isSubstitution says whether text is an expression and what takes its place between delimiters, and at most the flag i
// (RFC 3402, section 3.2). A delimiter is neither digit, backslash nor the flag.
func isSubstitution(text string) bool {
	delimiter, parts := text[0], 0
	if delimiter >= '1' && delimiter <= '9' || delimiter == '\\' || delimiter == 'i' {
		return false
	}
	for i := 1; i < len(text); i++ {
		switch text[i] {
		case '\\':
			i++
		case delimiter:
			if parts++; parts == 2 {
				return i > 2 && (text[i+1:] == "" || text[i+1:] == "i")
			}
		}
	}
	return false
}
