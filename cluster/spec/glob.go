package spec

import "strings"

// Glob says whether a pattern matches the whole of s: * is any run of bytes, also none, ? is exactly one; with case. It
// goes back at most to the last asterisk, so it takes at most len(pattern) × len(s) steps.
func Glob(pattern, s string) bool {
	star, from := -1, 0 // the last asterisk, and where what it stands for ends
	p, i := 0, 0
	for i < len(s) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, from = p, i
			p++
		case p < len(pattern) && (pattern[p] == '?' || pattern[p] == s[i]):
			p++
			i++
		case star >= 0:
			from++
			p, i = star+1, from
		default:
			return false
		}
	}
	return strings.Trim(pattern[p:], "*") == ""
}
