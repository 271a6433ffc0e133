package spec

import (
	"fmt"
	"strings"
)

// Labels are written as Kubernetes writes them: a key is a name of up to 63 letters, digits, hyphens, underscores and dots
// that begins and ends with a letter or digit, with or without a domain before it and a slash; a value is such a name, or empty.
const (
	maxLabelName      = 63
	labelValuePattern = `^([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?$`
	labelKeyPattern   = `^([a-z0-9][a-z0-9.-]{0,252}/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?$`
)

// labelProblem is what is wrong with a label, or "".
func labelProblem(key string, value *node) string {
	name := key
	if domain, rest, ok := strings.Cut(key, "/"); ok {
		name = rest
		if problem := domainProblem(domain); problem != "" || domain != strings.ToLower(domain) || strings.HasSuffix(domain, ".") || strings.Contains(domain, "_") {
			return "what stands before the slash must be a domain in small letters"
		}
	}
	const rule = "1–%d letters, digits, hyphens, underscores and dots, the first and last a letter or digit"
	switch {
	case !isLabelName(name):
		return fmt.Sprintf("a label's name must be "+rule, maxLabelName)
	case value.form == null:
		return `has no value: "" is the empty one`
	case value.form == mapping || value.form == sequence:
		return "must be a single value"
	case !value.isText():
		return fmt.Sprintf("must be text: put %q in quotes", value.text)
	case value.text != "" && !isLabelName(value.text):
		return fmt.Sprintf("a label's value must be "+rule+", or empty, not %.40q", maxLabelName, value.text)
	}
	return ""
}

func isLabelName(text string) bool {
	alphanumeric := func(c byte) bool { return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' }
	if text == "" || len(text) > maxLabelName || !alphanumeric(text[0]) || !alphanumeric(text[len(text)-1]) {
		return false
	}
	for _, c := range []byte(text) {
		if !alphanumeric(c) && strings.IndexByte("-_.", c) < 0 {
			return false
		}
	}
	return true
}
