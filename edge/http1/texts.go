package http1

import (
	"net/http"
	"strconv"
	"time"
	"unsafe"
)

// Text is bytes as a string, which is good as long as they are not changed. Who is given it must not keep it.
func Text(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// What texts of a request may be made of to mean the same however they are read, a set of bytes each.
const (
	lowerDigits = "abcdefghijklmnopqrstuvwxyz0123456789"
	// of a host: what is the same in lower case
	inPlainHost = lowerDigits + ".-_:[]"
	// of a path: what net/url does not escape (RFC 3986: pchar and the slash, without percent)
	inPlainPath = lowerDigits + "ABCDEFGHIJKLMNOPQRSTUVWXYZ-._~!$&'()*+,;=:@/"
)

// allowed is, for each byte, where it may be: hostByte, pathByte.
var allowed = func() (t [256]byte) {
	for _, c := range []byte(inPlainHost) {
		t[c] |= hostByte
	}
	for _, c := range []byte(inPlainPath) {
		t[c] |= pathByte
	}
	return t
}()

const (
	hostByte = 1 << iota
	pathByte
)

// PlainHost says whether a host is written in lower case.
func PlainHost(host []byte) bool {
	for _, c := range host {
		if allowed[c]&hostByte == 0 {
			return false
		}
	}
	return true
}

// PlainPath says whether a path is written in normal form, and as net/url would write it.
func PlainPath(path []byte) bool {
	before := byte(0)
	for _, c := range path {
		if allowed[c]&pathByte == 0 || before == '/' && (c == '/' || c == '.') {
			return false
		}
		before = c
	}
	return len(path) > 0 && path[0] == '/'
}

// PlainQuery says whether a query has visible ASCII only.
func PlainQuery(query []byte) bool {
	for _, c := range query {
		if c <= ' ' || c > '~' {
			return false
		}
	}
	return true
}

// Is says whether b is a word, which is given in lower case; ASCII letters of b may be of either.
func Is(b []byte, word string) bool { return is(b, word) }

// AppendStatus appends a status line, with the words of net/http.
func AppendStatus(b []byte, status int) []byte {
	b = append(strconv.AppendInt(append(b, "HTTP/1.1 "...), int64(status), 10), ' ')
	if text := http.StatusText(status); text != "" {
		b = append(b, text...)
	} else {
		b = strconv.AppendInt(append(b, "status code "...), int64(status), 10)
	}
	return append(b, "\r\n"...)
}

// AppendDate appends the field that says when a response was made (RFC 9110, 6.6.1).
func AppendDate(b []byte, now time.Time) []byte {
	return append(now.UTC().AppendFormat(append(b, "Date: "...), http.TimeFormat), "\r\n"...)
}
