package http1

import "bytes"

// Grade is how far two readers of a head could disagree about where its request ends, by the four classes of AWS's
// application load balancers.
type Grade uint8

const (
	Compliant  Grade = iota // with RFC 9112
	Acceptable              // it is not, but no reader is known to be misled
	Ambiguous               // readers differ
	Severe                  // it has no other use than to mislead
	Grades                  // how many there are
)

func (g Grade) String() string {
	return [...]string{"Compliant", "Acceptable", "Ambiguous", "Severe"}[g]
}

// Reason is why a head has its grade, by the names in AWS's access logs. Of several reasons the greatest counts.
type Reason uint8

const (
	NoReason Reason = iota

	GetHeadZeroContentLength
	NonCompliantVersion
	SpaceInUri
	NonCompliantHeader

	AmbiguousUri
	UndefinedContentLengthSemantics
	UndefinedTransferEncodingSemantics
	BothTeClPresent
	DuplicateContentLength
	EmptyHeader
	SuspiciousHeader

	BadVersion
	BadUri
	BadMethod
	BadContentLength
	MultipleContentLength
	BadTransferEncoding
	MultipleTransferEncodingChunked
	BadHeader

	Reasons // how many there are
)

var reasons = [Reasons]string{
	"Compliant",
	"GetHeadZeroContentLength", "NonCompliantVersion", "SpaceInUri", "NonCompliantHeader",
	"AmbiguousUri", "UndefinedContentLengthSemantics", "UndefinedTransferEncodingSemantics", "BothTeClPresent",
	"DuplicateContentLength", "EmptyHeader", "SuspiciousHeader",
	"BadVersion", "BadUri", "BadMethod", "BadContentLength", "MultipleContentLength", "BadTransferEncoding",
	"MultipleTransferEncodingChunked", "BadHeader",
}

func (r Reason) String() string { return reasons[r] }

// Grade is the class to which a reason belongs.
func (r Reason) Grade() Grade {
	switch {
	case r == NoReason:
		return Compliant
	case r < AmbiguousUri:
		return Acceptable
	case r < BadVersion:
		return Ambiguous
	}
	return Severe
}

// Mitigation is what becomes of requests by their grade: a load balancer's routing.http.desync_mitigation_mode.
type Mitigation uint8

const (
	// Unset is for who asks to have it from elsewhere; by itself it is Defensive.
	Unset Mitigation = iota
	// Monitor serves every request that can be understood, and counts. One that is not Framed is still the last on its
	// connection.
	Monitor
	// Defensive refuses what is Severe; what is Ambiguous is served, and then its connections are closed, to the client
	// and to the origin.
	Defensive
	// Strictest refuses all that is not Compliant.
	Strictest
)

// MitigationOf is the mode that a load balancer's desyncMitigationMode names; what is no name is Unset.
func MitigationOf(name string) Mitigation {
	switch name {
	case "monitor":
		return Monitor
	case "defensive":
		return Defensive
	case "strictest":
		return Strictest
	}
	return Unset
}

// Decide says whether a request of a grade is served, and whether its connections are closed after that.
func (m Mitigation) Decide(g Grade) (serve, last bool) {
	switch m {
	case Monitor:
		return true, false
	case Strictest:
		return g == Compliant, false
	}
	return g != Severe, g == Ambiguous
}

// Head is what a whole head says of its request: its grade, and where it ends.
type Head struct {
	Reason Reason
	// Framed says that all readers agree on where the request ends: after Length bytes of body or, if it is Chunked, where
	// Chunks says. If they might not agree, what follows the request on its connection is nothing to go by.
	Framed  bool
	Length  int64
	Chunked bool
}

// Read reads a head that ends where End says. It takes every head, and no more time than one look at each of its bytes.
func Read(head []byte) Head {
	r := reading{}
	r.read(head)
	return r.Head
}

// reading is the state of Read.
type reading struct {
	Head
	get, old, odd    bool // GET or HEAD; a version before 1.1; something that leaves Framed in doubt
	lengths, codings int  // fields of these names, or of names that resemble them
	chunks           int  // times "chunked" was named
	length           int64
	codingsEnd       bool // the last coding named is "chunked"
}

// note keeps the greatest reason.
func (r *reading) note(reason Reason) { r.Reason = max(r.Reason, reason) }

func (r *reading) read(head []byte) {
	line, rest, ok := cutLine(head)
	if !r.requestLine(line, ok) {
		return
	}
	for {
		line, rest, ok = cutLine(rest)
		if len(line) == 0 {
			if !ok {
				r.note(BadHeader)
			}
			break
		}
		r.field(line, ok)
	}
	if r.codings > 0 {
		switch {
		case r.chunks > 1:
			r.note(MultipleTransferEncodingChunked)
		case r.chunks == 1 && !r.codingsEnd:
			r.note(BadTransferEncoding) // something is coded over the chunks (RFC 9112, 6.1)
		}
		if r.get || r.old {
			r.note(UndefinedTransferEncodingSemantics)
		}
		if r.lengths > 0 {
			r.note(BothTeClPresent)
		}
	}
	if r.lengths > 0 && r.get {
		if r.length == 0 {
			r.note(GetHeadZeroContentLength)
		} else {
			r.note(UndefinedContentLengthSemantics)
		}
	}
	r.Length, r.Chunked = r.length, r.chunks > 0
	r.Framed = !r.odd && r.Reason.Grade() <= Acceptable && (r.codings == 0 || r.codings == 1 && r.chunks == 1)
}

// cutLine takes the first line off b, without its end. It is not ok if that is no CRLF.
func cutLine(b []byte) (line, rest []byte, ok bool) {
	i := bytes.IndexByte(b, '\n')
	if i < 0 {
		return b, nil, false
	}
	if i > 0 && b[i-1] == '\r' {
		return b[:i-1], b[i+1:], true
	}
	return b[:i], b[i+1:], false
}

// requestLine reads "method target version", and says whether the header behind it is to be looked at.
func (r *reading) requestLine(line []byte, ok bool) bool {
	method, rest, _ := bytes.Cut(line, []byte{' '})
	target, version := rest, []byte(nil)
	if i := bytes.LastIndexByte(rest, ' '); i >= 0 {
		target, version = rest[:i], rest[i+1:]
	}
	r.get = string(method) == "GET" || string(method) == "HEAD"
	switch {
	case string(version) == "HTTP/1.1":
	case string(version) == "HTTP/1.0":
		r.old = true
	case len(version) == 0, len(version) == len("HTTP/1.1") && string(version[:5]) == "HTTP/" && digit(version[5]) && version[6] == '.' && digit(version[7]):
		r.old, r.odd = len(version) == 0 || string(version[5:]) < "1.1", true
		r.note(NonCompliantVersion)
	default:
		r.odd = true
		r.note(BadVersion)
	}
	if !token(method) {
		r.note(BadMethod)
	}
	if len(target) == 0 {
		r.note(BadUri)
	}
	if i := bytes.LastIndexByte(target, ' '); i >= 0 {
		r.odd = true
		if r.note(SpaceInUri); bytes.HasPrefix(target[i+1:], []byte("HTTP/")) {
			r.note(BadVersion)
		}
	}
	for _, c := range target {
		switch {
		case c == 0 || c == '\r':
			r.note(BadUri)
		case c < ' ' || c == 0x7f:
			r.note(AmbiguousUri)
		}
	}
	r.odd = r.odd || string(method) == "CONNECT" // what follows is no HTTP
	if !ok {
		if version == nil {
			r.note(BadUri)
		} else {
			r.note(BadVersion)
		}
	}
	return ok
}

func (r *reading) field(line []byte, ok bool) {
	if !ok || bytes.IndexByte(line, 0) >= 0 || bytes.IndexByte(line, '\r') >= 0 {
		r.note(BadHeader)
		return
	}
	name, value, found := bytes.Cut(line, []byte{':'})
	if !found { // a line that continues the one before, mostly
		r.note(BadHeader)
		return
	}
	value = trim(value)
	if len(trim(name)) == 0 {
		r.note(EmptyHeader)
		return
	}
	like := resembles(name)
	switch exact := like == lengthLike && is(name, contentLength) || like == codingLike && is(name, transferEncoding); {
	case like != nothing && !exact:
		r.note(SuspiciousHeader)
	case like == codingLike:
		r.coding(value)
	case !token(name):
		r.odd = true
		r.note(NonCompliantHeader)
	case like == nothing && !clean(value):
		r.note(NonCompliantHeader)
	}
	switch like {
	case lengthLike:
		r.contentLength(value)
	case codingLike:
		r.codings++
	}
}

// contentLength reads a Content-Length, or what looks like one.
func (r *reading) contentLength(value []byte) {
	n, ok := length(value)
	switch {
	case !ok:
		r.note(BadContentLength)
	case r.lengths > 0 && n != r.length:
		r.note(MultipleContentLength)
	case r.lengths > 0:
		r.note(DuplicateContentLength)
	}
	r.lengths++
	r.length = n
}

// coding reads a Transfer-Encoding: a list of codings, which may have parameters (RFC 9112, 7).
func (r *reading) coding(value []byte) {
	for more := true; more; {
		var one []byte
		one, value, more = bytes.Cut(value, []byte{','})
		if !clean(one) {
			r.note(BadTransferEncoding)
			continue
		}
		one, parameters, _ := bytes.Cut(one, []byte{';'})
		one = trim(one)
		if r.codingsEnd = is(one, "chunked"); r.codingsEnd {
			r.chunks++
			r.odd = r.odd || len(parameters) > 0 // not every reader knows what to do with one
			continue
		}
		switch {
		case is(one, "gzip"), is(one, "x-gzip"), is(one, "deflate"), is(one, "compress"), is(one, "x-compress"), is(one, "identity"):
			r.odd = true
		default:
			r.note(BadTransferEncoding)
		}
	}
}

// length reads digits. More than an int64 holds is not ok.
func length[S string | []byte](s S) (n int64, ok bool) {
	for i := range len(s) {
		if !digit(s[i]) || n > (1<<63-1-9)/10 { // just below what an int64 holds
			return n, false
		}
		n = 10*n + int64(s[i]-'0')
	}
	return n, len(s) > 0
}

// IsLength says whether this is the value of a Content-Length (RFC 9110, 8.6), and no list of them.
func IsLength(s string) bool {
	_, ok := length(s)
	return ok
}

// IsToken says whether this may be a method or a field's name (RFC 9110, 5.6.2).
func IsToken(s string) bool { return token(s) }

// IsHost says whether this is made of nothing but what names, addresses and ports are made of. A plain request's Host is.
func IsHost(s string) bool { return hostly(s) }

func digit(c byte) bool { return c >= '0' && c <= '9' }

func token[S string | []byte](s S) bool { return all(s, inToken) }

func hostly[S string | []byte](s S) bool { return all(s, inHost) }

// all says whether there are bytes, and all may be part of something.
func all[S string | []byte](s S, of byte) bool {
	for i := range len(s) {
		if class[s[i]]&of == 0 {
			return false
		}
	}
	return len(s) > 0
}

const (
	contentLength    = "content-length"
	transferEncoding = "transfer-encoding"
)

// likeness is which of the two fields that say where a request ends a name could be taken for.
type likeness int

const (
	nothing likeness = iota
	lengthLike
	codingLike
)

// resembles looks at the letters of a name alone, as one does who takes white space, control characters, other hyphens or
// letters of other alphabets for what they look like.
func resembles(name []byte) likeness {
	like, word := nothing, ""
	for i := 0; i < len(name); i++ {
		c := name[i] | 0x20
		if c < 'a' || c > 'z' || name[i] >= 0x80 || name[i] < 'A' {
			if name[i] != 0xc5 || i+1 == len(name) || name[i+1] != 0xbf {
				continue
			}
			c = 's' // as ſ is, written large
			i++
		}
		switch {
		case like == nothing && c == 'c':
			like, word = lengthLike, "ontentlength"
		case like == nothing && c == 't':
			like, word = codingLike, "ransferencoding"
		case word == "" || word[0] != c:
			return nothing
		default:
			word = word[1:]
		}
	}
	if word != "" {
		return nothing
	}
	return like
}
