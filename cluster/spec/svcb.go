package spec

import (
	"encoding/base64"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Keys of service parameters (RFC 9460, section 14.3.2; RFC 9461; RFC 9540), by their numbers.
const (
	keyMandatory = iota
	keyALPN
	keyNoDefaultALPN
	keyPort
	keyIPv4Hint
	keyECH
	keyIPv6Hint
	keyDoHPath
	keyOHTTP
)

var serviceKeys = []string{"mandatory", "alpn", "no-default-alpn", "port", "ipv4hint", "ech", "ipv6hint", "dohpath", "ohttp"}

// parameter is one of a service's parameters as it is written.
type parameter struct {
	key  int
	text string // alpn=h2,h3
	list []string
}

// svcb reads a service binding (RFC 9460, section 2): a priority, a target and parameters, which come back in the order of
// their numbers (section 2.2), each of them once. An alias, of priority 0, has none.
func svcb(words []string) (canonical, problem string) {
	if words[1], problem = target(words[1], true); problem != "" {
		return "", problem
	}
	if words[0] == "0" && len(words) > 2 {
		return "", "has parameters, and priority 0 makes it an alias, which has none"
	}
	var given []parameter
	for _, word := range words[2:] {
		p, problem := serviceParameter(word)
		if problem != "" {
			return "", problem
		}
		given = append(given, p)
	}
	slices.SortStableFunc(given, func(a, b parameter) int { return a.key - b.key })
	words = words[:2:2]
	has := map[int]bool{}
	for _, p := range given {
		if has[p.key] {
			return "", fmt.Sprintf("has the parameter %s twice", keyName(p.key))
		}
		has[p.key] = true
		words = append(words, p.text)
	}
	if has[keyNoDefaultALPN] && !has[keyALPN] {
		return "", "has no-default-alpn without alpn: then no protocol is left"
	}
	if has[keyMandatory] {
		for _, name := range given[0].list {
			if key, _ := serviceKey(name); !has[key] {
				return "", fmt.Sprintf("has no parameter %s, which it says is mandatory", name)
			}
		}
	}
	return strings.Join(words, " "), ""
}

func keyName(key int) string {
	if key < len(serviceKeys) {
		return serviceKeys[key]
	}
	return "key" + strconv.Itoa(key)
}

// serviceKey is the number of a key: of a name that is known, or as key and a number (RFC 9460, section 2.1). 65535 is
// reserved, and what has a name is written by it.
func serviceKey(name string) (key int, problem string) {
	if key := slices.Index(serviceKeys, name); key >= 0 {
		return key, ""
	}
	digits, generic := strings.CutPrefix(name, "key")
	n, err := strconv.ParseUint(digits, 10, 16)
	switch {
	case !generic || err != nil || digits != strconv.FormatUint(n, 10) || n == 65535:
		return 0, fmt.Sprintf("%.40q is not a parameter: there are %s, and others as key and their number", name, list(serviceKeys, "and"))
	case int(n) < len(serviceKeys):
		return 0, fmt.Sprintf("%s is written %s", name, serviceKeys[n])
	}
	return int(n), ""
}

// serviceParameter reads one parameter, key or key=value; the value may be in double quotes.
func serviceParameter(word string) (p parameter, problem string) {
	name, text, given := strings.Cut(word, "=")
	if p.key, problem = serviceKey(name); problem != "" {
		return p, problem
	}
	wrong := func(form string) (parameter, string) {
		return p, fmt.Sprintf("%s must be %s, not %.80q", name, form, text)
	}
	if inner := strings.ReplaceAll(text, `\"`, ""); strings.Count(inner, `"`) > 0 && (!isQuoted(text) || len(text) < 2 || text[len(text)-1] != '"') {
		return wrong("in double quotes whole, or not at all")
	}
	value := unquote(text)
	if p.key == keyNoDefaultALPN || p.key == keyOHTTP {
		if given {
			return wrong("alone, without a value")
		}
		p.text = name
		return p, ""
	}
	if p.key < len(serviceKeys) && value == "" {
		return p, fmt.Sprintf("%s needs a value: %s=…", name, name)
	}
	switch p.key {
	case keyMandatory:
		p.list = strings.Split(value, ",")
		numbers := make([]int, len(p.list))
		for i, each := range p.list {
			if numbers[i], problem = serviceKey(each); problem != "" {
				return p, problem
			}
		}
		slices.Sort(numbers)
		if numbers[0] == keyMandatory || len(slices.Compact(slices.Clone(numbers))) < len(numbers) {
			return wrong("a list of other parameters, each of them once")
		}
		for i, n := range numbers {
			p.list[i] = keyName(n)
		}
		value = strings.Join(p.list, ",")
	case keyALPN:
		protocols := strings.Split(value, ",")
		for _, each := range protocols {
			if each == "" || len(each) > 255 || strings.ContainsFunc(each, func(r rune) bool { return r <= ' ' || r > '~' || r == '\\' || r == '"' }) {
				return wrong("a list of protocols like h2,h3")
			}
		}
	case keyPort:
		one := []string{value}
		if !numbers(one, 16) {
			return wrong("a port")
		}
		value = one[0]
	case keyIPv4Hint, keyIPv6Hint:
		addresses := strings.Split(value, ",")
		for i, each := range addresses {
			a, err := netip.ParseAddr(each)
			if err != nil || a.Is4() != (p.key == keyIPv4Hint) || a.Zone() != "" {
				return wrong("a list of addresses like " + map[int]string{keyIPv4Hint: "192.0.2.1,192.0.2.2", keyIPv6Hint: "2001:db8::1"}[p.key])
			}
			addresses[i] = a.String()
		}
		value = strings.Join(addresses, ",")
	case keyECH:
		if _, err := base64.StdEncoding.Strict().DecodeString(value); err != nil {
			return wrong("a list of configurations in base64")
		}
	case keyDoHPath:
		_, template, ok := strings.Cut(value, "{")
		if !ok || value[0] != '/' || !utf8.ValidString(value) || !strings.Contains(template, "dns") {
			return wrong("a path with the variable dns, like /dns-query{?dns}")
		}
	default:
		if !given {
			p.text = name
			return p, ""
		}
		p.text = name + "=" + quote(value)
		return p, ""
	}
	p.text = name + "=" + value
	if strings.ContainsFunc(value, func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune(`";()\`, r) }) {
		p.text = name + "=" + quote(value)
	}
	return p, ""
}
