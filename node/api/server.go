package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
)

// MaxBody bounds the body of a request, in bytes; a longer one is refused with 413.
const MaxBody = 64 << 20

// ForwardedBy names the node that forwarded a request. A forwarded request is not forwarded again:
// two nodes that each take the other for the leader must not send it back and forth.
const ForwardedBy = "Perigee-Forwarded-By"

// Backend is what the API asks of a node. Errors that are *Error are sent as they are; others are 500.
type Backend struct {
	Apply     func(context.Context, ApplyRequest) (ApplyResponse, error)
	Diff      func(context.Context, ApplyRequest) (ApplyResponse, error)
	Resources func(kind, name string) (ResourceList, error)
	Status    func() Status
	Health    func() []HealthEntry
	Explain   func(ExplainRequest) (ExplainResponse, error)
	// Counters are those of the whole node, by name.
	Counters func() map[string]uint64
	// Schema is the JSON Schema of the spec.
	Schema func() []byte
	// Forward sends the request to the leader and copies its answer. Where that fails it returns why, and has
	// answered nothing: ErrIsLeader or ErrNoLeader. It waits for a leader to be elected if told to.
	Forward func(w http.ResponseWriter, r *http.Request, body []byte, wait bool) error
	// Enlist is nil except on the control port.
	Enlist func(context.Context, EnlistRequest) error
}

var (
	// ErrNotLeader is what Apply and Enlist return on a node that is not the leader.
	ErrNotLeader = errors.New("this node is not the leader")
	// ErrIsLeader is what Forward returns on a node that has become the leader.
	ErrIsLeader = errors.New("this node is the leader")
	// ErrNoLeader is what Forward returns where no leader is to be reached.
	ErrNoLeader = errors.New("no leader is reached, so no change is taken")
)

// Server serves the API.
type Server struct {
	backend  Backend
	mux      *http.ServeMux
	requests atomic.Uint64
	refused  atomic.Uint64
}

// NewServer makes a server for a backend.
func NewServer(b Backend) *Server {
	s := &Server{backend: b, mux: http.NewServeMux()}
	s.mux.HandleFunc("POST /v1/apply", s.apply)
	s.mux.HandleFunc("POST /v1/diff", func(w http.ResponseWriter, r *http.Request) {
		serve(w, r, s, func(req ApplyRequest) (ApplyResponse, error) { return b.Diff(r.Context(), req) })
	})
	s.mux.HandleFunc("GET /v1/resources", func(w http.ResponseWriter, r *http.Request) {
		list, err := b.Resources(r.URL.Query().Get("kind"), r.URL.Query().Get("name"))
		s.answer(w, list, err)
	})
	s.mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, r *http.Request) { s.answer(w, b.Status(), nil) })
	s.mux.HandleFunc("GET /v1/health", func(w http.ResponseWriter, r *http.Request) { s.answer(w, b.Health(), nil) })
	s.mux.HandleFunc("POST /v1/explain", func(w http.ResponseWriter, r *http.Request) {
		serve(w, r, s, b.Explain)
	})
	s.mux.HandleFunc("GET /v1/schema", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/schema+json")
		w.Write(b.Schema())
	})
	s.mux.HandleFunc("GET /metrics", s.metrics)
	if b.Enlist != nil {
		s.mux.HandleFunc("POST /v1/enlist", s.enlist)
	}
	return s
}

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.requests.Add(1)
	s.mux.ServeHTTP(w, r)
}

// Counters returns what was counted so far.
func (s *Server) Counters() map[string]uint64 {
	return map[string]uint64{
		"api_requests_total": s.requests.Load(),
		"api_refused_total":  s.refused.Load(),
	}
}

// serve decodes the body, calls f and answers.
func serve[Req, Res any](w http.ResponseWriter, r *http.Request, s *Server, f func(Req) (Res, error)) {
	body, err := readBody(w, r)
	if err != nil {
		s.answer(w, nil, err)
		return
	}
	serveBody(w, body, s, f)
}

func serveBody[Req, Res any](w http.ResponseWriter, body []byte, s *Server, f func(Req) (Res, error)) {
	var req Req
	if err := decode(body, &req); err != nil {
		s.answer(w, nil, err)
		return
	}
	res, err := f(req)
	s.answer(w, res, err)
}

func (s *Server) apply(w http.ResponseWriter, r *http.Request) {
	s.atLeader(w, r, true, func(body []byte) error {
		var req ApplyRequest
		if err := decode(body, &req); err != nil {
			return err
		}
		res, err := s.backend.Apply(r.Context(), req)
		if err == nil {
			s.answer(w, res, nil)
		}
		return err
	})
}

func (s *Server) enlist(w http.ResponseWriter, r *http.Request) {
	s.atLeader(w, r, false, func(body []byte) error { // whoever enlists asks the next member sooner than it waits
		var req EnlistRequest
		if err := decode(body, &req); err != nil {
			return err
		}
		err := s.backend.Enlist(r.Context(), req)
		if err == nil {
			s.answer(w, struct{}{}, nil)
		}
		return err
	})
}

// atLeader runs f here, or sends the request to the leader where f says that this node is not it.
func (s *Server) atLeader(w http.ResponseWriter, r *http.Request, wait bool, f func(body []byte) error) {
	body, err := readBody(w, r)
	if err == nil {
		err = f(body)
	}
	if errors.Is(err, ErrNotLeader) && r.Header.Get(ForwardedBy) == "" {
		if err = s.backend.Forward(w, r, body, wait); errors.Is(err, ErrIsLeader) {
			err = f(body)
		}
	}
	if errors.Is(err, ErrNotLeader) || errors.Is(err, ErrNoLeader) {
		err = &Error{Status: http.StatusServiceUnavailable, Message: err.Error()}
	}
	if err != nil {
		s.answer(w, nil, err)
	}
}

func readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, MaxBody))
	var long *http.MaxBytesError
	switch {
	case errors.As(err, &long):
		return nil, &Error{Status: http.StatusRequestEntityTooLarge, Message: fmt.Sprintf("the body is longer than %d bytes", MaxBody)}
	case err != nil:
		return nil, &Error{Status: http.StatusBadRequest, Message: "read the body: " + err.Error()}
	}
	return body, nil
}

func decode(body []byte, into any) error {
	d := json.NewDecoder(strings.NewReader(string(body)))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return &Error{Status: http.StatusBadRequest, Message: "decode the body: " + err.Error()}
	}
	return nil
}

func (s *Server) answer(w http.ResponseWriter, res any, err error) {
	status := http.StatusOK
	if err != nil {
		s.refused.Add(1)
		var e *Error
		if !errors.As(err, &e) {
			e = &Error{Status: http.StatusInternalServerError, Message: err.Error()}
		}
		status, res = e.Status, e
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(res)
}

// metrics writes the counters in Prometheus's text format.
func (s *Server) metrics(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/plain; version=0.0.4")
	all := s.backend.Counters()
	maps.Copy(all, s.Counters())
	for _, name := range slices.Sorted(maps.Keys(all)) {
		kind := "gauge"
		if strings.HasSuffix(name, "_total") {
			kind = "counter"
		}
		fmt.Fprintf(w, "# TYPE perigee_%s %s\nperigee_%s %d\n", name, kind, name, all[name])
	}
}
