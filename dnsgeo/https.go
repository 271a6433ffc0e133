package dnsgeo

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"io"
	"mime"
	"net/http"
	"net/netip"
	"strconv"
	"strings"

	"github.com/miekg/dns"

	"github.com/perigee-net/perigee/dnsgeo/tsig"
)

const (
	// HTTPSPath is where queries are answered by HTTPS, which clients are told, or guess.
	HTTPSPath = "/dns-query"

	// messageType is the media type of messages (RFC 8484 §6).
	messageType = "application/dns-message"

	// maxEncoded is the longest query in the target of a GET.
	maxEncoded = (maxQuerySize*4 + 2) / 3
)

// ServeHTTP answers queries by HTTP (RFC 8484), whatever the path: GET with the parameter dns, and POST. Every response of the name
// service has status 200, whatever its rcode. It may be held for as long as the records of its answer, by the client alone, for it
// may depend on who asks.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	room := rooms.Get().(*[streamSize]byte)
	defer rooms.Put(room)
	query := room[:0:maxQuerySize]
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		encoded := parameter(r.URL.Query()["dns"])
		if len(encoded) > maxEncoded {
			http.Error(w, "the query is too long", http.StatusRequestURITooLong)
			return
		}
		var ok bool
		if query, ok = decode(query, encoded); !ok {
			http.Error(w, "the parameter dns is to be a message in base64url without padding", http.StatusBadRequest)
			return
		}
	case http.MethodPost:
		if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != messageType {
			http.Error(w, "want "+messageType, http.StatusUnsupportedMediaType)
			return
		}
		n, err := io.ReadFull(r.Body, room[:maxQuerySize+1])
		switch {
		case err == nil:
			http.Error(w, "the query is too long", http.StatusRequestEntityTooLarge)
			return
		case !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF):
			http.Error(w, "the query did not come whole", http.StatusBadRequest)
			return
		}
		query = room[:n]
	default:
		w.Header().Set("Allow", "GET, HEAD, POST")
		http.Error(w, "want GET or POST", http.StatusMethodNotAllowed)
		return
	}
	from, _ := netip.ParseAddrPort(r.RemoteAddr)
	response := s.respond(room[2*maxQuerySize:], query, from.Addr().Unmap().WithZone(""), HTTPS)
	if response == nil {
		http.Error(w, "that is no query", http.StatusBadRequest)
		return
	}
	h := w.Header()
	h.Set("Content-Type", messageType)
	h.Set("Content-Length", strconv.Itoa(len(response)))
	h.Set("Cache-Control", "private, max-age="+strconv.FormatUint(uint64(freshness(response)), 10))
	_, _ = w.Write(response)
}

// QuickHTTPS appends the fields and the empty line of what ServeHTTP answers to a GET, and returns the body; or nil, where
// ServeHTTP is to say what is wrong, or sees more in the query of the target than this.
func (s *Server) QuickHTTPS(head, target []byte, from netip.Addr) (fields, body []byte) {
	encoded, ok := strings.CutPrefix(string(target), "dns=") // stays on the stack, mostly
	if !ok || len(encoded) > maxEncoded {
		return head, nil
	}
	room := rooms.Get().(*[streamSize]byte)
	defer rooms.Put(room)
	query, ok := decode(room[:0:maxQuerySize], encoded)
	if !ok {
		return head, nil
	}
	response := s.respond(room[2*maxQuerySize:], query, from.Unmap(), HTTPS)
	if response == nil {
		return head, nil
	}
	head = append(head, "Content-Type: "+messageType+"\r\nContent-Length: "...)
	head = strconv.AppendInt(head, int64(len(response)), 10)
	head = append(head, "\r\nCache-Control: private, max-age="...)
	head = strconv.AppendUint(head, uint64(freshness(response)), 10)
	return append(head, "\r\n\r\n"...), append([]byte(nil), response...)
}

// parameter is a parameter that must be given once; else "".
func parameter(values []string) string {
	if len(values) != 1 {
		return ""
	}
	return values[0]
}

// decode appends a query that was given in base64url without padding (RFC 8484 §6).
func decode(b []byte, encoded string) ([]byte, bool) {
	if encoded == "" {
		return nil, false
	}
	query, err := base64.RawURLEncoding.Strict().AppendDecode(b, []byte(encoded))
	return query, err == nil
}

// freshness is for how many seconds a response may be held: the least TTL of its answer, or, where that is empty, of what says so
// (RFC 8484 §5.1); 0 for what is no answer: errors, and what was cut.
func freshness(m []byte) uint32 {
	rcode := int(m[3] & 0xf)
	if rcode != dns.RcodeSuccess && rcode != dns.RcodeNameError || m[2]&2 != 0 || binary.BigEndian.Uint16(m[4:]) != 1 {
		return 0
	}
	n := int(binary.BigEndian.Uint16(m[6:]))
	if n == 0 {
		n = int(binary.BigEndian.Uint16(m[8:]))
	}
	at := tsig.SkipName(m, headerSize, false)
	if at < 0 {
		return 0
	}
	at += 4
	least := ^uint32(0)
	for range n {
		if at = tsig.SkipName(m, at, true); at < 0 || at+10 > len(m) {
			return 0
		}
		least = min(least, binary.BigEndian.Uint32(m[at+4:]))
		at += 10 + int(binary.BigEndian.Uint16(m[at+8:]))
	}
	if n == 0 {
		return 0
	}
	return least
}
