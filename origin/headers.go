package origin

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"maps"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/perigee-net/perigee/edge/http1"
)

// The headers in which a load balancer tells a target of the client (ALB).
const (
	forwardedFor   = "X-Forwarded-For"
	forwardedProto = "X-Forwarded-Proto"
	forwardedPort  = "X-Forwarded-Port"
	traceID        = "X-Amzn-Trace-Id"
)

// hopByHop are the headers that concern one connection only (RFC 9110, 7.6.1), beside those that Connection names.
var hopByHop = []string{
	"Connection", "Keep-Alive", "Proxy-Connection", "Proxy-Authenticate", "Proxy-Authorization", "Te", "Trailer",
	"Transfer-Encoding", "Upgrade",
}

func removeHopByHop(h http.Header) {
	for _, values := range h["Connection"] {
		for name := range strings.SplitSeq(values, ",") {
			h.Del(strings.TrimSpace(name))
		}
	}
	for _, name := range hopByHop {
		delete(h, name)
	}
}

// upgrades says whether a message asks to switch to WebSocket, or agrees to. Other protocols are not let through, as by
// ALB: over h2c a client could send a target requests that no rule has seen.
func upgrades(h http.Header) bool {
	return hasToken(h["Connection"], "upgrade") && hasToken(h["Upgrade"], "websocket")
}

// hasToken says whether a token is in a header's lists, in whatever case.
func hasToken(lists []string, token string) bool {
	for _, list := range lists {
		for item := range strings.SplitSeq(list, ",") {
			if strings.EqualFold(strings.TrimSpace(item), token) {
				return true
			}
		}
	}
	return false
}

// outgoing makes the request that a target is sent of the one that came.
func (x *exchange) outgoing() *http.Request {
	in, port := x.in, x.listener.port
	h := maps.Clone(in.Header)
	removeHopByHop(h)
	if hasToken(in.Header["Te"], "trailers") {
		h["Te"] = []string{"trailers"}
	}
	if upgrades(in.Header) {
		h["Connection"], h["Upgrade"] = []string{"Upgrade"}, []string{"websocket"}
	}
	if _, ok := h["User-Agent"]; !ok {
		h["User-Agent"] = []string{""} // or else net/http names itself
	}
	hop := hop{client: x.peer, protocol: protocol(in), port: port, inside: x.inside}
	hop.forward(in.Header, h)
	h[traceID] = []string{traced(in.Header.Get(traceID), time.Now())}

	url := *in.URL
	url.Scheme = "http"
	out := &http.Request{
		Method: in.Method, URL: &url, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: h, Host: in.Host, ContentLength: in.ContentLength, Trailer: in.Trailer,
		Close: http1.IsAlone(in.Context()) || x.inside && in.Close, // an edge node says so for its viewer
	}
	if in.ContentLength != 0 { // no body is better than an empty one: it can be sent again
		out.Body = in.Body
	}
	if !x.inside {
		out.Host = hostWithPort(in.Host, port)
	}
	return out
}

// hop is what a load balancer knows of the connection on which a request came.
type hop struct {
	client   netip.Addr // invalid: not known
	protocol string
	port     uint16 // of the listener
	inside   bool   // it came from an edge node, whose word stands
}

// forward tells the target of the hop in the headers of the request that goes out.
func (h hop) forward(in, out http.Header) {
	chain := strings.Join(in[forwardedFor], ", ")
	if h.client.IsValid() && !(h.inside && chain != "") {
		if chain != "" {
			chain += ", "
		}
		chain += h.client.String() // IPv6 without brackets: there is no port beside it
	}
	if chain != "" {
		out.Set(forwardedFor, chain)
	}

	protocol, port := h.protocol, strconv.Itoa(int(h.port))
	if h.inside {
		if said := in.Get(forwardedProto); said == "http" || said == "https" {
			protocol = said
		}
		if said := in.Get(forwardedPort); said != "" {
			port = said
		}
	}
	out.Set(forwardedProto, protocol)
	out.Set(forwardedPort, port)
}

// hostWithPort adds a listener's port to a host that names none, unless it is 80 or 443 (ALB, preserve_host_header off).
func hostWithPort(host string, port uint16) string {
	if !needsPort(host, port) {
		return host
	}
	return host + ":" + strconv.Itoa(int(port))
}

func needsPort(host string, port uint16) bool {
	return port != 80 && port != 443 && host != "" && strings.LastIndexByte(host, ':') <= strings.LastIndexByte(host, ']')
}

// traced is the trace header for a target: a request without a Root gets one; one that has it keeps it and gets a
// Self of this load balancer in the place of the last one's. Other fields stay.
func traced(came string, now time.Time) string { return string(appendTraced(nil, came, now)) }

func appendTraced(b []byte, came string, now time.Time) []byte {
	var raw [4 + 12]byte
	binary.BigEndian.PutUint32(raw[:], uint32(now.Unix()))
	rand.Read(raw[4:])

	var kept strings.Builder
	rooted := false
	for field := range strings.SplitSeq(came, ";") {
		field = strings.TrimSpace(field)
		if field == "" || strings.HasPrefix(field, "Self=") {
			continue
		}
		rooted = rooted || strings.HasPrefix(field, "Root=")
		kept.WriteString(";" + field)
	}
	if rooted {
		b = append(b, "Self=1-"...)
	} else {
		b = append(b, "Root=1-"...)
	}
	b = append(hex.AppendEncode(b, raw[:4]), '-')
	return append(hex.AppendEncode(b, raw[4:]), kept.String()...)
}
