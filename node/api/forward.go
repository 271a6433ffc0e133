package api

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
)

// ForwardRequest is the request r, which a Server of the node called self serves, as it is to be sent to the leader at
// an address of the control port. It carries the caller's own token, or says who the local caller is. A nil body is r's own.
func ForwardRequest(ctx context.Context, self, address string, r *http.Request, body []byte) (*http.Request, error) {
	var content io.Reader = r.Body
	if body != nil {
		content = bytes.NewReader(body)
	}
	out, err := http.NewRequestWithContext(ctx, r.Method, "http://"+address+r.URL.RequestURI(), content)
	if err != nil {
		return nil, fmt.Errorf("forward: %w", err)
	}
	if body == nil {
		out.ContentLength = r.ContentLength
	}
	for _, name := range []string{"Content-Type", "If-Match", "Authorization"} {
		if v := r.Header.Get(name); v != "" {
			out.Header.Set(name, v)
		}
	}
	out.Header.Set(ForwardedBy, self)
	if by := PrincipalOf(r.Context()); out.Header.Get("Authorization") == "" && by.Name != "" {
		out.Header.Set(OnBehalfOf, by.Name)
	}
	return out, nil
}

// CopyAnswer copies the leader's answer to whoever asked this node. One that breaks off ends the connection.
func CopyAnswer(w http.ResponseWriter, res *http.Response) {
	for _, name := range []string{"Content-Type", "ETag", "Retry-After", "WWW-Authenticate"} {
		if v := res.Header.Get(name); v != "" {
			w.Header().Set(name, v)
		}
	}
	w.WriteHeader(res.StatusCode)
	if _, err := io.Copy(w, io.LimitReader(res.Body, maxAnswer)); err != nil {
		panic(http.ErrAbortHandler)
	}
}
