package api

import (
	"bytes"
	"context"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/gorillamux"

	"github.com/perigee-net/perigee/cluster/identity"
)

// validator is a transport that holds what goes by to the document.
type validator struct {
	t      *testing.T
	router routers.Router
	seen   map[string]bool
	next   http.RoundTripper
}

func (v *validator) RoundTrip(r *http.Request) (*http.Response, error) {
	var body []byte
	if r.Body != nil {
		body, _ = io.ReadAll(r.Body)
		r.Body = io.NopCloser(bytes.NewReader(body))
	}
	asked := r.Clone(r.Context())
	asked.Body = io.NopCloser(bytes.NewReader(body))
	asked.Header.Del("Expect")
	route, params, err := v.router.FindRoute(asked)
	if err != nil {
		v.t.Errorf("%s %s: %v", r.Method, r.URL.Path, err)
		return v.next.RoundTrip(r)
	}
	v.seen[route.Method+" "+route.Path] = true
	in := &openapi3filter.RequestValidationInput{Request: asked, PathParams: params, Route: route, Options: &openapi3filter.Options{
		AuthenticationFunc: func(context.Context, *openapi3filter.AuthenticationInput) error { return nil }, IncludeResponseStatus: true, MultiError: true,
	}}
	if err := openapi3filter.ValidateRequest(r.Context(), in); err != nil {
		v.t.Errorf("the request %s %s: %v\n%s", r.Method, r.URL, err, body)
	}
	res, err := v.next.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	answer, _ := io.ReadAll(res.Body)
	res.Body = io.NopCloser(bytes.NewReader(answer))
	out := &openapi3filter.ResponseValidationInput{RequestValidationInput: in, Status: res.StatusCode, Header: res.Header, Options: in.Options}
	out.SetBodyBytes(answer)
	if err := openapi3filter.ValidateResponse(r.Context(), out); err != nil {
		v.t.Errorf("the answer %d to %s %s: %v\n%s", res.StatusCode, r.Method, r.URL, err, answer)
	}
	return res, nil
}

// walk asks everything that there is once, by the client.
func walk(t *testing.T, c *Client) []error {
	ctx := t.Context()
	var errs []error
	did := func(_ any, err error) { errs = append(errs, err) }
	did(c.Apply(ctx, ApplyRequest{ID: "1", Files: []File{{Name: "a.yaml", Data: "kind: X"}}, Delete: []Ref{{"K", "n"}},
		Prune: &Prune{Labels: map[string]string{"app": "x"}}, DryRun: true, Note: "why", Expect: revision(7)}))
	did(c.Apply(ctx, ApplyRequest{}))
	did(c.Diff(ctx, ApplyRequest{Files: []File{{Name: "a.yaml", Data: "kind: X"}}}))
	did(c.Rollback(ctx, RollbackRequest{ID: "2", Revision: 3, Note: "back", Expect: revision(7)}))
	did(c.Resources(ctx, ResourcesQuery{}))
	did(c.Resources(ctx, ResourcesQuery{Kind: "LoadBalancer", Name: "team-web", Fresh: true}))
	did(c.Blocks(ctx, Ref{"LoadBalancer", "team-web"}))
	did(c.History(ctx, HistoryQuery{Limit: 10, Own: true}))
	did(c.Revision(ctx, 7))
	did(c.ResourcesAt(ctx, 6))
	did(c.Wait(ctx, 7, 3*time.Second))
	did(c.Status(ctx))
	did(c.Health(ctx, HealthQuery{}))
	did(c.Health(ctx, HealthQuery{Name: "web"}))
	did(c.Distances(ctx, "b"))
	did(c.Anycast(ctx))
	did(c.Zones(ctx))
	did(c.Accelerator(ctx, AcceleratorQuery{Name: "game"}))
	did(c.Accelerator(ctx, AcceleratorQuery{Name: "game", Node: "a", Top: 1000}))
	did(c.PortMappings(ctx, PortMappingsQuery{Name: "game"}))
	did(c.PortMappings(ctx, PortMappingsQuery{Name: "game", Destination: "10.0.0.1:80"}))
	did(c.Events(ctx, EventQuery{}))
	did(c.Events(ctx, EventQuery{After: 3, Limit: 7, Wait: time.Second, Subject: "accelerator/game"}))
	did(c.Purge(ctx, PurgeRequest{ID: "1", Distribution: "shop", Paths: []string{"/*"}}))
	did(c.Block(ctx, BlockRequest{CIDRs: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}, For: Duration(time.Hour), Reason: "flood", Force: true}))
	did(c.Unblock(ctx, BlockRequest{CIDRs: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}}))
	did(c.Drain(ctx, DrainRequest{Scope: ScopePOP, Name: "icn1", For: Duration(time.Minute), Reason: "repair"}))
	did(c.Undrain(ctx, DrainRequest{Scope: ScopePOP, Name: "icn1"}))
	did(c.Orders(ctx))
	did(c.OrdersAfter(ctx, 3))
	did(c.Explain(ctx, ExplainRequest{What: "dns", Target: "www.example.com"}))
	did(c.Schema(ctx))
	did(c.OpenAPI(ctx))
	did(c.Metrics(ctx))
	did(c.Nodes(ctx))
	did(c.Revoke(ctx, "a"))
	did(c.Forget(ctx, "a"))
	did(c.CreateToken(ctx, TokenRequest{Roles: []string{"edge"}, TTL: Duration(time.Hour), Uses: 2}))
	did(c.CreateToken(ctx, TokenRequest{}))
	did(c.Tokens(ctx))
	did(c.DeleteToken(ctx, "1"))
	did(c.CreateAccess(ctx, AccessRequest{Name: "ci", Roles: []string{"read"}, Resources: []string{"X/*"}, TTL: Duration(time.Hour)}))
	did(c.Access(ctx))
	did(c.DeleteAccess(ctx, "ci"))
	did(c.Keys(ctx))
	did(c.Rotate(ctx, "gossip"))
	did(nil, c.Snapshot(ctx, io.Discard))
	did(c.Restore(ctx, strings.NewReader("all"), 3))
	return errs
}

// documentOf loads a document and validates it; the address is where it is served.
func documentOf(t *testing.T, data []byte, address string) routers.Router {
	t.Helper()
	doc, err := openapi3.NewLoader().LoadFromData(data)
	if err != nil {
		t.Fatal(err)
	}
	doc.Servers = openapi3.Servers{{URL: address}}
	if err := doc.Validate(t.Context(), openapi3.EnableSchemaFormatValidation(), openapi3.EnableSchemaPatternValidation(), openapi3.EnableMultiError()); err != nil {
		t.Fatal(err)
	}
	router, err := gorillamux.NewRouter(doc)
	if err != nil {
		t.Fatal(err)
	}
	return router
}

func TestWhatIsServedIsWhatTheDocumentSays(t *testing.T) {
	for _, as := range []string{"admin", "reader", "team", "nobody"} {
		t.Run(as, func(t *testing.T) {
			h := httptest.NewServer(serverOf(backendOf()))
			defer h.Close()
			c, err := NewClient(h.URL, Options{Token: as})
			if err != nil {
				t.Fatal(err)
			}
			v := &validator{t: t, router: documentOf(t, OpenAPI(), h.URL), seen: map[string]bool{}, next: c.http.Transport}
			c.http.Transport = v
			for _, err := range walk(t, c) {
				if as == "admin" && err != nil {
					t.Error(err)
				}
			}
			for _, r := range routes() {
				if !r.nodes && !v.seen[r.method+" "+r.path] {
					t.Errorf("%s %s was not asked", r.method, r.path)
				}
			}
		})
	}
}

func TestWhatNodesAskIsInTheControlPortsDocument(t *testing.T) {
	s := NewNodeServer(backendOf(), func(*http.Request) string { return "edge" })
	h := httptest.NewServer(s)
	defer h.Close()
	c, err := NewClient(h.URL, Options{})
	if err != nil {
		t.Fatal(err)
	}
	v := &validator{t: t, router: documentOf(t, s.openAPI(), h.URL), seen: map[string]bool{}, next: c.http.Transport}
	c.http.Transport = v
	claim := identity.Claim{Name: "n", Region: "r", POP: "p", Roles: []string{"edge"}}
	if _, err := c.Join(t.Context(), identity.JoinRequest{TokenID: []byte{1}, Secret: []byte{2}, Claim: claim, CSR: []byte{3}}); err != nil {
		t.Error(err)
	}
	if _, err := c.Renew(t.Context(), RenewRequest{CSR: []byte{3}, Claim: claim}); err != nil {
		t.Error(err)
	}
	if res, err := c.Update(t.Context(), NodeUpdate{Message: []byte{1}, Client: "192.0.2.1"}); err != nil || res.Revision != 3 {
		t.Error(res, err)
	}
	if res, err := c.NodeAccelerator(t.Context(), AcceleratorQuery{Name: "game", Top: 7}); err != nil || res.Name != "game" || res.Top[0].BytesIn != 7 {
		t.Errorf("got %+v, %v", res, err)
	}
	if _, err := c.Order(t.Context(), NodeOrder{Order: []byte{1}}); err != nil {
		t.Error(err)
	}
	if want := []string{"GET /v1/accelerators/{name}/here", "POST /v1/join", "POST /v1/order", "POST /v1/renew", "POST /v1/update"}; !slices.Equal(slices.Sorted(maps.Keys(v.seen)), want) {
		t.Errorf("asked %v", v.seen)
	}
	for _, path := range []string{"/v1/join", "/v1/order", "/v1/renew", "/v1/update", "/v1/accelerators/game/here"} {
		if w := asked(serverOf(backendOf()), "admin", http.MethodPost, path, "{}"); w.Code != http.StatusNotFound {
			t.Errorf("at another door %s answers %d", path, w.Code)
		}
	}
}

func TestANodeOfALaterReleaseIsUnderstood(t *testing.T) {
	s := NewNodeServer(backendOf(), func(*http.Request) string { return "edge" })
	for _, path := range []string{"/v1/join", "/v1/order", "/v1/renew"} {
		if w := asked(s, "", http.MethodPost, path, `{"csr":"AQ==","more":{"than":"is known"}}`); w.Code != http.StatusOK {
			t.Errorf("%s: %d %s", path, w.Code, w.Body)
		}
	}
}

func TestTheDocumentIsTheSameEachTime(t *testing.T) {
	if !bytes.Equal(OpenAPI(), OpenAPI()) {
		t.Error("it differs")
	}
	if w := asked(serverOf(backendOf()), "reader", http.MethodGet, "/v1/openapi.json", ""); !bytes.Equal(w.Body.Bytes(), OpenAPI()) {
		t.Error("what is served differs from what OpenAPI returns")
	}
}
