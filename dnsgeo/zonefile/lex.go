package zonefile

import "strings"

// entry is one entry of a zone file: what stands on a line, or on several within parentheses (RFC 1035, section 5.1).
type entry struct {
	line    int      // on which it begins
	blank   bool     // it begins with white space: its owner is that of the entry before
	words   []string // what begins with a double quote ends with one; escapes are left as they are
	problem string   // why it cannot be read, or ""
}

// quoted says whether a word is in double quotes.
func quoted(word string) bool { return strings.HasPrefix(word, `"`) }

// lexer splits a zone file into entries.
type lexer struct {
	text string
	at   int
	line int
}

// next reads the next entry that is not empty. After one that has a problem it goes on at the next line.
func (l *lexer) next() (e entry, ok bool) {
	for l.at < len(l.text) {
		e = l.entry()
		if len(e.words) > 0 || e.problem != "" {
			return e, true
		}
	}
	return entry{}, false
}

func (l *lexer) entry() entry {
	e := entry{line: l.line}
	open := 0 // parentheses
	fail := func(problem string) entry {
		e.problem = problem
		if n := strings.IndexByte(l.text[l.at:], '\n'); n >= 0 {
			l.at += n + 1
			l.line++
		} else {
			l.at = len(l.text)
		}
		return e
	}
	e.blank = isSpace(l.text[l.at])
	for l.at < len(l.text) {
		switch c := l.text[l.at]; {
		case c == '\n':
			l.at++
			l.line++
			if open == 0 {
				return e
			}
		case isSpace(c):
			l.at++
		case c == ';':
			for l.at < len(l.text) && l.text[l.at] != '\n' {
				l.at++
			}
		case c == '(':
			open++
			l.at++
			if open > 1 {
				return fail("a parenthesis within parentheses")
			}
		case c == ')':
			open--
			l.at++
			if open < 0 {
				return fail("a closing parenthesis that was never opened")
			}
		default:
			word, problem := l.word()
			if problem != "" {
				return fail(problem)
			}
			e.words = append(e.words, word)
		}
	}
	if open > 0 {
		e.problem = "a parenthesis that is never closed"
	}
	return e
}

func isSpace(c byte) bool { return c == ' ' || c == '\t' || c == '\r' }

// word reads one word, which begins here.
func (l *lexer) word() (word, problem string) {
	start, open := l.at, false
	for ; l.at < len(l.text); l.at++ {
		switch c := l.text[l.at]; {
		case c == '\n' && open:
			return "", "a double quote that is not closed on its line"
		case c == '\n' || !open && (isSpace(c) || strings.IndexByte(";()", c) >= 0):
			return l.text[start:l.at], ""
		case c == '\\' && l.at+1 < len(l.text) && l.text[l.at+1] != '\n':
			l.at++
		case c == '"':
			open = !open
			if !open && l.text[start] == '"' {
				l.at++
				return l.text[start:l.at], ""
			}
		}
	}
	if open {
		return "", "a double quote that is never closed"
	}
	return l.text[start:], ""
}
