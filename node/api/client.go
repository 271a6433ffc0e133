package api

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"time"
)

// Socket is the name of the unix socket in a node's data folder.
const Socket = "api.sock"

// Client talks to one node.
type Client struct {
	base string
	http *http.Client
}

// NewClient makes a client for an address: http://HOST:PORT, HOST:PORT, or the path of a unix socket
// or of a data folder that has one. dial is nil for the real network.
func NewClient(address string, dial func(ctx context.Context, network, address string) (net.Conn, error)) *Client {
	if dial == nil {
		dial = new(net.Dialer).DialContext
	}
	base := strings.TrimSuffix(address, "/")
	switch {
	case strings.Contains(address, "://"):
	case strings.ContainsAny(address, `/\`) || address == ".":
		path := address
		if filepath.Base(path) != Socket {
			path = filepath.Join(path, Socket)
		}
		tcp := dial
		dial = func(ctx context.Context, _, _ string) (net.Conn, error) { return tcp(ctx, "unix", path) }
		base = "http://perigee"
	default:
		base = "http://" + address
	}
	return &Client{base: base, http: &http.Client{Transport: &http.Transport{
		DialContext: dial, DisableKeepAlives: true, ResponseHeaderTimeout: time.Minute,
	}}}
}

// Apply makes one change.
func (c *Client) Apply(ctx context.Context, req ApplyRequest) (res ApplyResponse, err error) {
	return res, c.post(ctx, "/v1/apply", req, &res)
}

// Diff says what a change would do.
func (c *Client) Diff(ctx context.Context, req ApplyRequest) (res ApplyResponse, err error) {
	return res, c.post(ctx, "/v1/diff", req, &res)
}

// Resources lists the resources of a kind ("": all), or the one of that name.
func (c *Client) Resources(ctx context.Context, kind, name string) (res ResourceList, err error) {
	q := url.Values{"kind": {kind}, "name": {name}}
	return res, c.get(ctx, "/v1/resources?"+q.Encode(), &res)
}

// Status is the network as the node sees it.
func (c *Client) Status(ctx context.Context) (res Status, err error) {
	return res, c.get(ctx, "/v1/status", &res)
}

// Health is the verdicts as the node sees them.
func (c *Client) Health(ctx context.Context) (res []HealthEntry, err error) {
	return res, c.get(ctx, "/v1/health", &res)
}

// Explain asks why.
func (c *Client) Explain(ctx context.Context, req ExplainRequest) (res ExplainResponse, err error) {
	return res, c.post(ctx, "/v1/explain", req, &res)
}

// Schema is the JSON Schema of the spec.
func (c *Client) Schema(ctx context.Context) (schema json.RawMessage, err error) {
	return schema, c.get(ctx, "/v1/schema", &schema)
}

// Metrics are the node's counters as Prometheus's text.
func (c *Client) Metrics(ctx context.Context) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.base+"/metrics", nil)
	if err != nil {
		return "", err
	}
	body, err := c.do(req)
	return string(body), err
}

// Enlist asks to be made a member of Raft; it works on the control port only.
func (c *Client) Enlist(ctx context.Context, req EnlistRequest) error {
	return c.post(ctx, "/v1/enlist", req, &struct{}{})
}

func (c *Client) get(ctx context.Context, path string, into any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.base+path, nil)
	if err != nil {
		return err
	}
	return c.decode(req, into)
}

func (c *Client) post(ctx context.Context, path string, body, into any) error {
	data, err := json.Marshal(body)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.base+path, bytes.NewReader(data))
	if err != nil {
		return err
	}
	return c.decode(req, into)
}

func (c *Client) decode(req *http.Request, into any) error {
	body, err := c.do(req)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(body, into); err != nil {
		return fmt.Errorf("decode the answer of %s: %w", req.URL.Path, err)
	}
	return nil
}

// do sends the request; an answer that is not 200 comes back as *Error.
func (c *Client) do(req *http.Request) ([]byte, error) {
	res, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, 2*MaxBody))
	if err != nil {
		return nil, fmt.Errorf("read the answer of %s: %w", req.URL.Path, err)
	}
	if res.StatusCode != http.StatusOK {
		refusal := &Error{Status: res.StatusCode}
		if json.Unmarshal(body, refusal) != nil || refusal.Message == "" {
			refusal.Message = fmt.Sprintf("%s: %s", res.Status, strings.TrimSpace(string(body)))
		}
		return nil, refusal
	}
	return body, nil
}
