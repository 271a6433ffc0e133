package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/perigee-net/perigee/cluster/identity"
)

// Socket is the name of the unix socket in a node's data folder.
const Socket = "api.sock"

const (
	// answerTime bounds how long an answer may take to begin, beyond what was asked to be waited for.
	answerTime = time.Minute

	// maxAnswer bounds an answer, in bytes: twice what a cluster can have agreed, and room for how it is understood.
	maxAnswer = 1 << 30

	// maxRefusal bounds what is read of a refusal, in bytes.
	maxRefusal = 1 << 20

	// askFirst is the size, in bytes, from which a body is sent only after the server has said that it will take it.
	askFirst = 1 << 20
)

// Options are how a client reaches a node, and as whom.
type Options struct {
	// Token is an access token. It also says which cluster may answer, unless CAFile does.
	Token string
	// CAFile has the certificates, in PEM, of the authorities that a server's may be of, for servers behind something
	// that ends TLS. The server's name is checked then.
	CAFile string
	// Dial is nil for the real network.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Now is nil for the real clock, by which certificates are judged.
	Now func() time.Time
}

// Client talks to one node.
type Client struct {
	base  string // scheme and host
	shown string // the address as errors are to name it
	token string // "" at a socket, which has its own right
	unix  bool
	http  *http.Client
}

// NewClient makes a client for an address: HOST:PORT or https://HOST:PORT, http://HOST:PORT for one without TLS, or
// the path of a unix socket or of a data folder that has one; there a token is not shown.
func NewClient(address string, o Options) (*Client, error) {
	dial := o.Dial
	if dial == nil {
		dial = new(net.Dialer).DialContext
	}
	c := &Client{base: strings.TrimSuffix(address, "/"), shown: address, token: o.Token}
	transport := &http.Transport{
		DialContext: dial, DisableKeepAlives: true, TLSHandshakeTimeout: 10 * time.Second, ExpectContinueTimeout: 10 * time.Second,
	}
	scheme, _, named := strings.Cut(address, "://")
	switch {
	case named && scheme != "http" && scheme != "https":
		return nil, fmt.Errorf("%s: want HOST:PORT, https:// or http://, or the path of a data folder", address)
	case !named && (strings.ContainsAny(address, `/\`) || address == "." || address == ".."):
		path := address
		if filepath.Base(path) != Socket {
			path = filepath.Join(path, Socket)
		}
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx, "unix", path) }
		c.base, c.shown, c.token, c.unix = "http://perigee", path, "", true
	case !named:
		c.base = "https://" + address
	}
	if u, err := url.Parse(c.base); err != nil || u.Host == "" || u.Path != "" || u.RawQuery != "" {
		return nil, fmt.Errorf("%s: want HOST:PORT, or the path of a data folder", address)
	}
	if strings.HasPrefix(c.base, "https://") {
		var err error
		if transport.TLSClientConfig, err = o.tls(); err != nil {
			return nil, err
		}
	}
	c.http = &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error {
		return http.ErrUseLastResponse // a token is shown to nobody else
	}}
	return c, nil
}

// NewNodeClient makes a client of another node's control port, over connections that are authenticated by what dials them.
func NewNodeClient(dial func(context.Context) (net.Conn, error)) *Client {
	return &Client{base: "http://perigee", shown: "the control port", http: &http.Client{Transport: &http.Transport{
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
		DisableKeepAlives: true, ExpectContinueTimeout: 10 * time.Second,
	}}}
}

// Apply makes one change, which must follow the revision req.Expect if that is given. Of large documents what stands already is not sent, but at
// a unix socket: there it costs less to send it than to find out.
func (c *Client) Apply(ctx context.Context, req ApplyRequest) (res ApplyResponse, err error) {
	if !c.unix {
		if short, ok := c.inParts(ctx, req); ok {
			if err = c.ask(ctx, http.MethodPost, "/v1/apply", short, &res, ifMatch(req.Expect)); err == nil || !tooNew(err) {
				return res, err
			}
		}
	}
	return res, c.ask(ctx, http.MethodPost, "/v1/apply", req, &res, ifMatch(req.Expect))
}

// Diff says what a change would do.
func (c *Client) Diff(ctx context.Context, req ApplyRequest) (res ApplyResponse, err error) {
	return res, c.ask(ctx, http.MethodPost, "/v1/diff", req, &res, "")
}

// Rollback makes the spec be as it was.
func (c *Client) Rollback(ctx context.Context, req RollbackRequest) (res ApplyResponse, err error) {
	return res, c.ask(ctx, http.MethodPost, "/v1/rollback", req, &res, ifMatch(req.Expect))
}

// Resources lists the resources of a kind ("": all), or the one of that name.
func (c *Client) Resources(ctx context.Context, q ResourcesQuery) (res ResourceList, err error) {
	v := url.Values{}
	for name, value := range map[string]string{"kind": q.Kind, "name": q.Name} {
		if value != "" {
			v.Set(name, value)
		}
	}
	if q.Fresh {
		v.Set("fresh", "true")
	}
	return res, c.get(ctx, "/v1/resources", v, &res)
}

// History is the last changes, newest first; a limit of 0 is the server's.
func (c *Client) History(ctx context.Context, q HistoryQuery) (res History, err error) {
	v := url.Values{}
	if q.Limit > 0 {
		v.Set("limit", strconv.Itoa(q.Limit))
	}
	if q.Own {
		v.Set("own", "true")
	}
	return res, c.get(ctx, "/v1/history", v, &res)
}

// Revision is one change of the past.
func (c *Client) Revision(ctx context.Context, revision uint64) (res RevisionDetail, err error) {
	return res, c.get(ctx, fmt.Sprintf("/v1/revisions/%d", revision), nil, &res)
}

// ResourcesAt is the resources as they were at a revision.
func (c *Client) ResourcesAt(ctx context.Context, revision uint64) (res ResourceList, err error) {
	return res, c.get(ctx, fmt.Sprintf("/v1/revisions/%d/resources", revision), nil, &res)
}

// Wait returns when every live node runs the revision or has refused it, or after a time, at most MaxWait, with what is then.
func (c *Client) Wait(ctx context.Context, revision uint64, timeout time.Duration) (res WaitResponse, err error) {
	ctx, cancel := context.WithTimeout(ctx, timeout+answerTime)
	defer cancel()
	v := url.Values{"timeout": {timeout.String()}}
	return res, c.ask(ctx, http.MethodGet, withQuery(fmt.Sprintf("/v1/revisions/%d/wait", revision), v), nil, &res, "")
}

// Status is the network as the node sees it.
func (c *Client) Status(ctx context.Context) (res Status, err error) {
	return res, c.get(ctx, "/v1/status", nil, &res)
}

// Health is the verdicts as the node sees them.
func (c *Client) Health(ctx context.Context, q HealthQuery) (res []HealthEntry, err error) {
	v := url.Values{}
	if q.Name != "" {
		v.Set("name", q.Name)
	}
	return res, c.get(ctx, "/v1/health", v, &res)
}

// Distances are the estimates of the round trips from a node to all others; from "": from the node that is asked.
func (c *Client) Distances(ctx context.Context, from string) (res DistanceList, err error) {
	v := url.Values{}
	if from != "" {
		v.Set("from", from)
	}
	return res, c.get(ctx, "/v1/distances", v, &res)
}

// Anycast is what the node that is asked announces by BGP.
func (c *Client) Anycast(ctx context.Context) (res AnycastList, err error) {
	return res, c.get(ctx, "/v1/anycast", nil, &res)
}

// Zones is the secondary zones, and what each node has of them.
func (c *Client) Zones(ctx context.Context) (res ZoneList, err error) {
	return res, c.get(ctx, "/v1/zones", nil, &res)
}

// Accelerator is what goes on at an accelerator.
func (c *Client) Accelerator(ctx context.Context, q AcceleratorQuery) (res AcceleratorStatus, err error) {
	return res, c.accelerator(ctx, q, "", &res)
}

// NodeAccelerator is what goes on at an accelerator on the node that is asked alone, for another node.
func (c *Client) NodeAccelerator(ctx context.Context, q AcceleratorQuery) (res AcceleratorStatus, err error) {
	return res, c.accelerator(ctx, q, "/here", &res)
}

func (c *Client) accelerator(ctx context.Context, q AcceleratorQuery, where string, res *AcceleratorStatus) error {
	v := url.Values{"top": {strconv.Itoa(q.Top)}}
	if q.Node != "" {
		v.Set("node", q.Node)
	}
	return c.get(ctx, "/v1/accelerators/"+url.PathEscape(q.Name)+where, v, res)
}

// PortMappings is where the ports of a custom routing accelerator lead.
func (c *Client) PortMappings(ctx context.Context, q PortMappingsQuery) (res PortMappingList, err error) {
	v := url.Values{}
	if q.Destination != "" {
		v.Set("destination", q.Destination)
	}
	return res, c.get(ctx, "/v1/accelerators/"+url.PathEscape(q.Name)+"/port-mappings", v, &res)
}

// Events is what turned, as the node sees it.
func (c *Client) Events(ctx context.Context, q EventQuery) (res EventList, err error) {
	ctx, cancel := context.WithTimeout(ctx, q.Wait+answerTime)
	defer cancel()
	v := url.Values{}
	if q.After > 0 {
		v.Set("after", strconv.FormatUint(q.After, 10))
	}
	if q.Limit > 0 {
		v.Set("limit", strconv.Itoa(q.Limit))
	}
	if q.Wait > 0 {
		v.Set("wait", q.Wait.String())
	}
	if q.Subject != "" {
		v.Set("subject", q.Subject)
	}
	return res, c.get(ctx, "/v1/events", v, &res)
}

// Purge has all caches forget objects.
func (c *Client) Purge(ctx context.Context, req PurgeRequest) (res OrderResponse, err error) {
	return res, c.ask(ctx, http.MethodPost, "/v1/purge", req, &res, "")
}

// Block has clients refused.
func (c *Client) Block(ctx context.Context, req BlockRequest) (res OrderResponse, err error) {
	return res, c.ask(ctx, http.MethodPost, "/v1/block", req, &res, "")
}

// Unblock takes it back.
func (c *Client) Unblock(ctx context.Context, req BlockRequest) (res OrderResponse, err error) {
	return res, c.ask(ctx, http.MethodPost, "/v1/unblock", req, &res, "")
}

// Drain has nothing new sent somewhere.
func (c *Client) Drain(ctx context.Context, req DrainRequest) (res OrderResponse, err error) {
	return res, c.ask(ctx, http.MethodPost, "/v1/drain", req, &res, "")
}

// Undrain takes it back.
func (c *Client) Undrain(ctx context.Context, req DrainRequest) (res OrderResponse, err error) {
	return res, c.ask(ctx, http.MethodPost, "/v1/undrain", req, &res, "")
}

// Orders is what is drained, blocked and was purged.
func (c *Client) Orders(ctx context.Context) (res OrderList, err error) { return c.OrdersAfter(ctx, 0) }

// OrdersAfter is Orders with those purges only that are newer than an epoch, for who asks again and again.
func (c *Client) OrdersAfter(ctx context.Context, epoch uint64) (res OrderList, err error) {
	v := url.Values{}
	if epoch > 0 {
		v.Set("after", strconv.FormatUint(epoch, 10))
	}
	return res, c.get(ctx, "/v1/orders", v, &res)
}

// againOrders is how often WaitOrder asks.
const againOrders = 100 * time.Millisecond

// WaitOrder waits until every live node has said that it has the order of an epoch, and all before it. It returns who has not
// when ctx ends, with the error of that.
func (c *Client) WaitOrder(ctx context.Context, epoch uint64) (behind []NodeBehind, err error) {
	for {
		list, err := c.OrdersAfter(ctx, math.MaxInt64) // what was purged is not looked at
		switch {
		case err == nil:
			behind = slices.DeleteFunc(list.Behind, func(n NodeBehind) bool { return n.Epoch >= epoch })
			if list.Epoch >= epoch && len(behind) == 0 {
				return nil, nil
			}
		case ctx.Err() == nil:
			return behind, err
		}
		select {
		case <-time.After(againOrders):
		case <-ctx.Done():
			return behind, ctx.Err()
		}
	}
}

// Order has the leader agree on an order; it works at the control port only.
func (c *Client) Order(ctx context.Context, req NodeOrder) (res Recorded, err error) {
	return res, c.ask(ctx, http.MethodPost, "/v1/order", req, &res, "")
}

// Update has the leader agree on an update of a zone; it works at the control port only.
func (c *Client) Update(ctx context.Context, req NodeUpdate) (res UpdateResponse, err error) {
	return res, c.ask(ctx, http.MethodPost, "/v1/update", req, &res, "")
}

// Explain asks why.
func (c *Client) Explain(ctx context.Context, req ExplainRequest) (res ExplainResponse, err error) {
	return res, c.ask(ctx, http.MethodPost, "/v1/explain", req, &res, "")
}

// Schema is the JSON Schema of the spec.
func (c *Client) Schema(ctx context.Context) (schema json.RawMessage, err error) {
	return schema, c.get(ctx, "/v1/schema", nil, &schema)
}

// OpenAPI is the document of the API itself.
func (c *Client) OpenAPI(ctx context.Context) (document json.RawMessage, err error) {
	return document, c.get(ctx, "/v1/openapi.json", nil, &document)
}

// Metrics are the node's counters as Prometheus's text.
func (c *Client) Metrics(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	var text strings.Builder
	err := c.do(ctx, http.MethodGet, "/metrics", nil, -1, "", func(res *http.Response) error {
		_, err := io.Copy(&text, io.LimitReader(res.Body, maxAnswer))
		return err
	})
	return text.String(), err
}

// Nodes lists every node that the cluster has admitted.
func (c *Client) Nodes(ctx context.Context) (res NodeList, err error) {
	return res, c.get(ctx, "/v1/nodes", nil, &res)
}

// Revoke shuts a node out.
func (c *Client) Revoke(ctx context.Context, node string) (res Recorded, err error) {
	return res, c.ask(ctx, http.MethodPost, "/v1/nodes/"+url.PathEscape(node)+"/revoke", nil, &res, "")
}

// Forget removes what is recorded of a node that is gone for good.
func (c *Client) Forget(ctx context.Context, node string) (res Recorded, err error) {
	return res, c.ask(ctx, http.MethodDelete, "/v1/nodes/"+url.PathEscape(node), nil, &res, "")
}

// CreateToken makes a join token.
func (c *Client) CreateToken(ctx context.Context, req TokenRequest) (res TokenResponse, err error) {
	return res, c.ask(ctx, http.MethodPost, "/v1/tokens", req, &res, "")
}

// Tokens lists the join tokens.
func (c *Client) Tokens(ctx context.Context) (res TokenList, err error) {
	return res, c.get(ctx, "/v1/tokens", nil, &res)
}

// DeleteToken takes a join token back.
func (c *Client) DeleteToken(ctx context.Context, id string) (res Recorded, err error) {
	return res, c.ask(ctx, http.MethodDelete, "/v1/tokens/"+url.PathEscape(id), nil, &res, "")
}

// CreateAccess makes an access token.
func (c *Client) CreateAccess(ctx context.Context, req AccessRequest) (res AccessResponse, err error) {
	return res, c.ask(ctx, http.MethodPost, "/v1/access", req, &res, "")
}

// Access lists the access tokens.
func (c *Client) Access(ctx context.Context) (res AccessList, err error) {
	return res, c.get(ctx, "/v1/access", nil, &res)
}

// DeleteAccess takes an access token back.
func (c *Client) DeleteAccess(ctx context.Context, name string) (res Recorded, err error) {
	return res, c.ask(ctx, http.MethodDelete, "/v1/access/"+url.PathEscape(name), nil, &res, "")
}

// Keys are the cluster's keys, without any secret.
func (c *Client) Keys(ctx context.Context) (res Keys, err error) {
	return res, c.get(ctx, "/v1/keys", nil, &res)
}

// Rotate begins the rotation of the authority or of the gossip key.
func (c *Client) Rotate(ctx context.Context, what string) (res Recorded, err error) {
	return res, c.ask(ctx, http.MethodPost, "/v1/rotate", RotateRequest{What: what}, &res, "")
}

// Snapshot writes all that is agreed to w. What was written before an error is no snapshot.
func (c *Client) Snapshot(ctx context.Context, w io.Writer) error {
	return c.do(ctx, http.MethodGet, "/v1/snapshot", nil, -1, "", func(res *http.Response) error {
		n, err := io.Copy(w, io.LimitReader(res.Body, MaxSnapshot+1))
		if err == nil && n > MaxSnapshot {
			err = fmt.Errorf("it is longer than %d bytes", MaxSnapshot)
		}
		return err
	})
}

// Restore replaces all that is agreed by a snapshot of so many bytes.
func (c *Client) Restore(ctx context.Context, snapshot io.Reader, size int64) (res RestoreResponse, err error) {
	return res, c.do(ctx, http.MethodPost, "/v1/snapshot", snapshot, size, "", decodeInto(&res))
}

// Join hands on what a machine has asked that wants to be a node; it works at the control port only, as Renew does.
func (c *Client) Join(ctx context.Context, req identity.JoinRequest) (res identity.JoinAnswer, err error) {
	return res, c.ask(ctx, http.MethodPost, "/v1/join", req, &res, "")
}

// Renew asks for a new certificate.
func (c *Client) Renew(ctx context.Context, req RenewRequest) (res identity.JoinAnswer, err error) {
	return res, c.ask(ctx, http.MethodPost, "/v1/renew", req, &res, "")
}

func ifMatch(expect *uint64) string {
	if expect == nil {
		return ""
	}
	return etag(*expect)
}

func withQuery(path string, v url.Values) string {
	if len(v) == 0 {
		return path
	}
	return path + "?" + v.Encode()
}

func (c *Client) get(ctx context.Context, path string, v url.Values, into any) error {
	return c.ask(ctx, http.MethodGet, withQuery(path, v), nil, into, "")
}

// ask sends a body, unless it is nil, and decodes the answer. Without a deadline of the caller's it has its own.
func (c *Client) ask(ctx context.Context, method, path string, body, into any, match string) error {
	if _, bounded := ctx.Deadline(); !bounded {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, answerTime)
		defer cancel()
	}
	if body == nil {
		return c.do(ctx, method, path, nil, -1, match, decodeInto(into))
	}
	data, err := marshal(body)
	if err != nil {
		return fmt.Errorf("encode the request: %w", err)
	}
	if len(data) > MaxBody {
		return refuse(http.StatusRequestEntityTooLarge, "the request has %d bytes: at most %d are taken", len(data), MaxBody)
	}
	return c.do(ctx, method, path, bytes.NewReader(data), int64(len(data)), match, decodeInto(into))
}

func decodeInto(into any) func(*http.Response) error {
	return func(res *http.Response) error {
		left := &io.LimitedReader{R: res.Body, N: maxAnswer}
		err := json.NewDecoder(left).Decode(into)
		if err != nil && left.N <= 0 {
			return fmt.Errorf("it is longer than %d bytes", maxAnswer)
		}
		return err
	}
}

// do sends a request and has the answer read; one that is not 200 comes back as *Error.
func (c *Client) do(ctx context.Context, method, path string, body io.Reader, size int64, match string, read func(*http.Response) error) error {
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, body)
	if err != nil {
		return fmt.Errorf("ask %s: %w", c.shown, err)
	}
	if body != nil {
		req.ContentLength = size
		req.Header.Set("Content-Type", "application/json")
		if method == http.MethodPost && strings.HasSuffix(path, "/snapshot") {
			req.Header.Set("Content-Type", binary)
		}
		if size >= askFirst || size < 0 {
			req.Header.Set("Expect", "100-continue")
		}
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	if match != "" {
		req.Header.Set("If-Match", match)
	}
	res, err := c.http.Do(req)
	if err != nil {
		return c.explain(err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return c.refused(res)
	}
	if res.Header.Get(Mark) == "" {
		return fmt.Errorf("%s answers, but it is not the API of a Perigee node", c.shown)
	}
	if err := read(res); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return fmt.Errorf("read the answer of %s to %s: %w", c.shown, path, err)
	}
	return nil
}

// refused is an answer that is not 200.
func (c *Client) refused(res *http.Response) error {
	body, err := io.ReadAll(io.LimitReader(res.Body, maxRefusal))
	said := &Error{}
	switch {
	case strings.Contains(string(body), "HTTP request to an HTTPS server"):
		return fmt.Errorf("%s speaks HTTPS: say https://", c.shown)
	case res.Header.Get(Mark) == "":
		return fmt.Errorf("%s answers %q, but it is not the API of a Perigee node", c.shown, res.Status)
	case err == nil && json.Unmarshal(body, said) == nil && said.Message != "":
		said.Status = res.StatusCode
		return said
	}
	return &Error{Status: res.StatusCode, Message: res.Status}
}

// explain says what a failure to reach a node means, where that can be known.
func (c *Client) explain(err error) error {
	var wrapped *url.Error
	if errors.As(err, &wrapped) {
		err = wrapped.Err // it names a URL that nobody has typed
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%s does not answer in time: %w", c.shown, err)
	case errors.Is(err, context.Canceled):
		return err
	case c.unix && errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("no node has run with this data folder, or none with a socket: %w", err)
	case c.unix && errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("only the node's user and root may open its socket: %w", err)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("nothing listens at %s: %w", c.shown, err)
	case strings.Contains(err.Error(), "server gave HTTP response to HTTPS client"):
		return fmt.Errorf("%s speaks HTTP without TLS: say http:// if that is meant", c.shown)
	}
	if errors.Is(err, io.EOF) && !c.unix && strings.HasPrefix(c.base, "http://") {
		return fmt.Errorf("%s ends the connection without an answer: if it speaks HTTPS, say https://: %w", c.shown, err)
	}
	if errors.Is(err, identity.ErrOtherCluster) {
		return fmt.Errorf("%s: %w", c.shown, identity.ErrOtherCluster)
	}
	if said := explainTLS(err); said != "" {
		return fmt.Errorf("%s %s: %w", c.shown, said, err)
	}
	return fmt.Errorf("ask %s: %w", c.shown, err)
}
