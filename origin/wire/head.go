package wire

import (
	"errors"
	"net/http"

	"github.com/perigee-net/perigee/edge/http1"
)

var errRequest = errors.New("a request that cannot be written")

// appendHead appends the head of a request (RFC 9112, 3). Its fields are in no order. What could be taken for more than one request
// is an error.
func appendHead(b []byte, q *http.Request) ([]byte, error) {
	target := q.URL.RequestURI()
	for i := range len(target) {
		if c := target[i]; c <= ' ' || c == 0x7f {
			return b, errRequest
		}
	}
	b = append(b, method(q)...)
	b = append(b, ' ')
	b = append(b, target...)
	b = append(b, " HTTP/1.1\r\nHost: "...)
	b = append(b, authority(q)...)
	b = append(b, "\r\n"...)
	switch q.Method {
	case http.MethodPost, http.MethodPut, http.MethodPatch: // RFC 9110, 8.6: a method of which a body is expected
		b = append(b, "Content-Length: 0\r\n"...)
	}
	if q.Close {
		b = append(b, "Connection: close\r\n"...)
	}
	for name, lines := range q.Header {
		if name == "Host" || name == "User-Agent" && len(lines) > 0 && lines[0] == "" { // as net/http: this leaves it out
			continue
		}
		if len(lines) > 0 && !http1.IsToken(name) {
			return b, errRequest
		}
		for _, line := range lines {
			if !http1.IsValue(line) {
				return b, errRequest
			}
			b = append(b, name...)
			b = append(b, ": "...)
			b = append(b, line...)
			b = append(b, "\r\n"...)
		}
	}
	return append(b, "\r\n"...), nil
}
