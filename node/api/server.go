package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Bounds of what a Server takes.
const (
	MaxBody     = 32 << 20  // bytes of a request that has files; beyond it 413. A change takes 8 MiB of them, and reading it several times as much
	MaxSnapshot = 512 << 20 // bytes of a snapshot; beyond it 413
	maxSmall    = 1 << 20   // bytes of any other request; beyond it 413

	MaxHistory     = 1000 // changes of one answer
	defaultHistory = 50

	MaxEvents     = 1000 // of one answer; beyond it 400
	defaultEvents = 200
	// defaultTopFlows is how many flows of an accelerator are listed, where no number is given.
	defaultTopFlows = 10
	maxEventWait    = time.Minute     // for an event; beyond it 400
	MaxWait         = 5 * time.Minute // for the nodes to run a revision; beyond it 400
	defaultWait     = time.Minute

	maxRequests = 512      // served at once; beyond it 429
	maxWaiting  = 256      // of them those that wait for nodes; beyond it 429
	maxHeld     = 96 << 20 // bytes of the bodies of requests that are served at once; beyond it 429
	maxName     = 255      // bytes of a name in a path or a query; beyond it 400

	// writeTime bounds how long whoever asked may take to read an answer, streamTime to send or read a snapshot; then
	// the connection is ended.
	writeTime  = 2 * time.Minute
	streamTime = 15 * time.Minute
)

// Mark is a header of every answer, by which a client knows that it has found the API of a node.
const Mark = "Perigee-Api"

// Types of what is sent.
const (
	asJSON = "application/json"
	binary = "application/octet-stream"
)

// Server serves the API at one door.
type Server struct {
	backend Backend
	who     Who
	peer    func(*http.Request) string // nil but at the control port
	mux     *http.ServeMux
	openAPI func() []byte // made when it is first asked for
	whole   whole

	held                                                              atomic.Int64
	serving, waiting                                                  atomic.Int64
	requests, refused, nobody, forbidden, busy, forwarded, cut, parts atomic.Uint64
}

// NewServer makes the server of a door for people and programs.
func NewServer(b Backend, who Who) *Server { return newServer(b, who, nil) }

// NewNodeServer makes the server of the control port. peer is the name of the node at the far end of a request's
// connection, "" where there is none.
func NewNodeServer(b Backend, peer func(*http.Request) string) *Server {
	return newServer(b, ByNode(b, peer), peer)
}

func newServer(b Backend, who Who, peer func(*http.Request) string) *Server {
	s := &Server{backend: b, who: who, peer: peer, mux: http.NewServeMux()}
	table := slices.DeleteFunc(routes(), func(r route) bool { return r.nodes && peer == nil })
	s.openAPI = sync.OnceValue(func() []byte { return document(table) })
	methods := map[string][]string{}
	for _, r := range table {
		s.mux.HandleFunc(r.method+" "+r.path, func(w http.ResponseWriter, req *http.Request) { s.serve(&r, w, req) })
		methods[r.path] = append(methods[r.path], r.method)
	}
	for path, known := range methods {
		allowed := strings.Join(known, ", ")
		s.mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Allow", allowed)
			s.refuse(w, refuse(http.StatusMethodNotAllowed, "%s takes %s only", path, allowed))
		})
	}
	s.mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		s.refuse(w, refuse(http.StatusNotFound, "the API has no %.100q; GET /v1/openapi.json says what it has", r.URL.Path))
	})
	return s
}

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.requests.Add(1)
	w.Header().Set(Mark, "1")
	w.Header().Set("Cache-Control", "no-store")
	if s.serving.Add(1) > maxRequests {
		s.serving.Add(-1)
		s.refuse(w, ErrBusy)
		return
	}
	defer s.serving.Add(-1)
	http.NewResponseController(w).SetWriteDeadline(time.Now().Add(MaxWait + writeTime)) // the answer's own comes with it
	s.mux.ServeHTTP(w, r)
}

// Counters returns what was counted so far at this door.
func (s *Server) Counters() map[string]uint64 {
	return map[string]uint64{
		"api_requests":                uint64(s.serving.Load()),
		"api_requests_total":          s.requests.Load(),
		"api_refused_total":           s.refused.Load(),
		"api_unauthenticated_total":   s.nobody.Load(),
		"api_forbidden_total":         s.forbidden.Load(),
		"api_busy_total":              s.busy.Load(),
		"api_forwarded_total":         s.forwarded.Load(),
		"api_answers_cut_short_total": s.cut.Load(),
		"api_files_in_parts_total":    s.parts.Load(),
	}
}

// call is one request that was let in.
type call struct {
	ctx    context.Context
	server *Server
	route  *route
	w      http.ResponseWriter
	r      *http.Request
	by     Principal
	peer   string // at the control port: the node at the far end
	query  url.Values
	expect *uint64 // of If-Match
	body   []byte  // nil where the route streams
	held   int64   // bytes that it counts for

	again bool    // to repeat it is harmless
	etag  *uint64 // of the answer
}

// serve answers a request of a route.
func (s *Server) serve(rt *route, w http.ResponseWriter, r *http.Request) {
	c := &call{ctx: r.Context(), server: s, route: rt, w: w, r: r, again: rt.again}
	defer func() { s.held.Add(-c.held) }()
	err := s.take(c, rt)
	var res any
	if err == nil {
		res, err = rt.do(c)
	}
	if errors.Is(err, ErrNotLeader) && rt.leader && (s.peer == nil || r.Header.Get(ForwardedBy) == "") {
		s.forwarded.Add(1)
		if err = s.backend.Forward(w, c.r, c.body, c.again); err == nil {
			return
		}
		if errors.Is(err, ErrIsLeader) {
			res, err = rt.do(c)
		}
	}
	if err != nil {
		s.refuse(w, err)
		return
	}
	s.answer(c, res)
}

// take lets a request in: who asks comes first, what is asked after, so that a stranger's body is not read.
func (s *Server) take(c *call, rt *route) error {
	if s.peer != nil {
		c.peer = s.peer(c.r)
	}
	if err := s.authorise(c, rt); err != nil {
		return err
	}
	c.ctx = context.WithValue(c.r.Context(), principalKey{}, c.by)
	c.r = c.r.WithContext(c.ctx)
	var err error
	if c.query, err = rt.readQuery(c.r.URL.RawQuery); err != nil {
		return err
	}
	if c.expect, err = rt.readMatch(c.r.Header.Values("If-Match")); err != nil {
		return err
	}
	if rt.stream {
		return s.boundStream(c, rt)
	}
	if rt.most > 0 {
		return s.readBody(c, rt)
	}
	c.body = []byte{} // what is sent to a route that has none is not forwarded
	return nil
}

// authorise says whether whoever asks may use the route.
func (s *Server) authorise(c *call, rt *route) error {
	if rt.nodes {
		if c.peer == "" {
			return refuse(http.StatusUnauthorized, "only a node of the cluster may ask this")
		}
		return nil
	}
	by, err := s.who(c.r)
	if err != nil {
		return err
	}
	c.by = by
	if !by.May(rt.role) {
		return refuse(http.StatusForbidden, "%s lacks the role %s", by.Name, rt.role)
	}
	if rt.role == Admin && len(by.Resources) > 0 { // else it could make a token for itself that is not limited
		return refuse(http.StatusForbidden, "%s is limited to named resources: this needs the role %s without a limit", by.Name, Admin)
	}
	return nil
}

// readQuery takes what the route knows, once each.
func (rt *route) readQuery(raw string) (url.Values, error) {
	query, err := url.ParseQuery(raw)
	if err != nil {
		return nil, refuse(http.StatusBadRequest, "the query: %v", err)
	}
	for name, values := range query {
		known := slices.ContainsFunc(rt.params, func(p param) bool { return p.in == "query" && p.name == name })
		switch {
		case !known:
			return nil, refuse(http.StatusBadRequest, "the query: %s knows no %.40q", rt.path, name)
		case len(values) > 1:
			return nil, refuse(http.StatusBadRequest, "the query: %s is there %d times", name, len(values))
		case len(values[0]) > maxName:
			return nil, refuse(http.StatusBadRequest, "the query: %s is longer than %d bytes", name, maxName)
		}
	}
	return query, nil
}

// readMatch reads If-Match (RFC 9110 section 13.1.1): one revision, or * for any.
func (rt *route) readMatch(shown []string) (*uint64, error) {
	if len(shown) == 0 {
		return nil, nil
	}
	if !rt.match {
		return nil, refuse(http.StatusBadRequest, "If-Match: %s %s does not follow a revision", rt.method, rt.path)
	}
	text := strings.TrimSpace(shown[0])
	if len(shown) == 1 && text == "*" {
		return nil, nil
	}
	revision, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimPrefix(text, `"`), `"`), 10, 64)
	if err != nil || len(shown) > 1 {
		return nil, refuse(http.StatusBadRequest, `If-Match %.40q: want one revision, as "12"`, strings.Join(shown, ", "))
	}
	return &revision, nil
}

// etag is a revision as ETag and If-Match write it.
func etag(revision uint64) string { return `"` + strconv.FormatUint(revision, 10) + `"` }

// boundStream bounds a body that is not kept in memory, in bytes and in time.
func (s *Server) boundStream(c *call, rt *route) error {
	if c.r.ContentLength > rt.most { // before a byte of it is asked for
		return tooLong(rt)
	}
	c.r.Body = http.MaxBytesReader(c.w, c.r.Body, rt.most)
	ends := time.Now().Add(streamTime)
	control := http.NewResponseController(c.w)
	control.SetReadDeadline(ends)
	control.SetWriteDeadline(ends.Add(writeTime))
	return nil
}

func tooLong(rt *route) error {
	return refuse(http.StatusRequestEntityTooLarge, "the body is longer than %d bytes", rt.most)
}

// readBody reads a body into memory, if there is room for it beside those of others.
func (s *Server) readBody(c *call, rt *route) error {
	if c.r.ContentLength > rt.most {
		return tooLong(rt)
	}
	content := http.MaxBytesReader(c.w, c.r.Body, rt.most)
	if c.held = c.r.ContentLength; c.held < 0 {
		c.held = rt.most
	}
	if s.held.Add(c.held) > maxHeld {
		return ErrBusy
	}
	var err error
	var long *http.MaxBytesError
	if c.r.ContentLength >= 0 {
		c.body = make([]byte, c.r.ContentLength)
		_, err = io.ReadFull(content, c.body)
	} else {
		c.body, err = io.ReadAll(content)
	}
	switch {
	case errors.As(err, &long):
		return tooLong(rt)
	case err != nil:
		return refuse(http.StatusBadRequest, "read the body: %v", err)
	}
	return nil
}

// decode reads JSON. Strictly means that what the API does not know is refused by its name.
func decode(body []byte, into any, strictly bool) error {
	if len(bytes.TrimSpace(body)) == 0 {
		return refuse(http.StatusBadRequest, "the body is empty: want JSON")
	}
	var long *lifted
	if _, files := into.(*ApplyRequest); files {
		body, long = lift(body)
	}
	d := json.NewDecoder(bytes.NewReader(body))
	if strictly {
		d.DisallowUnknownFields()
	}
	if err := d.Decode(into); err != nil {
		return refuse(http.StatusBadRequest, "decode the body: %s", strings.TrimPrefix(err.Error(), "json: "))
	}
	if _, err := d.Token(); err != io.EOF {
		return refuse(http.StatusBadRequest, "decode the body: something follows the JSON")
	}
	if long != nil {
		long.putBack(reflect.ValueOf(into))
	}
	return nil
}

// refuse answers with an error.
func (s *Server) refuse(w http.ResponseWriter, err error) {
	e := refusal(err)
	s.refused.Add(1)
	switch e.Status {
	case http.StatusUnauthorized:
		s.nobody.Add(1)
		w.Header().Set("WWW-Authenticate", `Bearer realm="perigee"`)
	case http.StatusForbidden:
		s.forbidden.Add(1)
	case http.StatusTooManyRequests:
		s.busy.Add(1)
	}
	if e.RetryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(e.RetryAfter))
	}
	body, _ := json.Marshal(e) // texts and numbers
	s.send(w, e.Status, asJSON, append(body, '\n'))
}

// answer sends what a route's handler returned.
func (s *Server) answer(c *call, res any) {
	if _, sent := res.(written); sent {
		return
	}
	if c.etag != nil {
		c.w.Header().Set("ETag", etag(*c.etag))
	}
	if list, long := res.(ResourceList); long {
		s.sendList(c.w, list)
		return
	}
	body, err := json.Marshal(s.whole.of(res))
	if err != nil {
		s.refuse(c.w, fmt.Errorf("encode the answer: %w", err))
		return
	}
	s.send(c.w, http.StatusOK, asJSON, append(body, '\n'))
}

func (s *Server) send(w http.ResponseWriter, status int, kind string, body []byte) {
	http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writeTime))
	w.Header().Set("Content-Type", kind)
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	w.Write(body)
}

// sendList sends resources one by one: all of them at once would be in memory twice.
func (s *Server) sendList(w http.ResponseWriter, list ResourceList) {
	http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writeTime))
	w.Header().Set("Content-Type", asJSON)
	out := bufio.NewWriterSize(w, 64<<10)
	fmt.Fprintf(out, `{"revision":%d,"resources":[`, list.Revision)
	for i, r := range list.Resources {
		one, err := json.Marshal(r)
		if err != nil {
			s.abort()
		}
		if i > 0 {
			out.WriteByte(',')
		}
		out.Write(one)
	}
	out.WriteString("]}\n")
	if out.Flush() != nil {
		s.abort()
	}
}

// abort ends a connection on which an answer was begun that cannot be ended well.
func (s *Server) abort() {
	s.cut.Add(1)
	panic(http.ErrAbortHandler)
}
