// Package http1 is the head of an HTTP/1 message as bytes. Requests are read strictly, without allocation, and graded by how far
// two readers of one could disagree about where it ends; responses are read strictly, or are a Fault. It opens no sockets and
// answers nothing: node/front reads requests from connections, edge/cdn and origin answer, origin/wire reads responses.
//
// When things break: a request that is not of the plain form is no error here. It is left, bytes and all, to net/http.
package http1

import (
	"context"
	"io"
	"net/netip"
	"os"
	"time"
)

// Field is one line of a header, as it was sent. The name is a token; the value has no white space around it.
type Field struct{ Name, Value []byte }

// Request is the head of a request of the plain form: GET or HEAD for an origin-form target by HTTP/1.1, one Host, no body,
// nothing that would make its connection another protocol's. All of it aliases the buffer that it was read from, and is
// good until the answer is written.
type Request struct {
	Head   bool   // the method is HEAD; else it is GET
	Target []byte // as it was sent
	Path   []byte // of Target
	Query  []byte // of Target, without the question mark
	Host   []byte // as it was sent
	Fields []Field
	Bytes  int  // of the request line and the header, with their ends
	Close  bool // the client wants the connection closed after the answer

	// What who reads from the connection knows besides.
	TLS    bool
	Remote netip.AddrPort
	Now    time.Time // when it had come
}

// Response is an answer that is there already. What answers appends the status line and all fields, with the empty line at
// their end, to Head, which comes with room. There is no Connection among the fields: who writes it to the connection
// knows whether that stays open, and adds it.
type Response struct {
	Status int
	Head   []byte
	// Body is what follows. It is shared, and nobody changes it.
	Body []byte
	// File, if it is set, follows Body: so many bytes of a file, from an offset on.
	File   *os.File
	Offset int64
	Length int64
	// Lent, if it is set, has the same bytes, whether there is a File or not: for who cannot have the kernel send a file, or has to wait for the
	// client. File is in memory then, so nothing of it is waited for.
	Lent Lent
	// Done, if it is set, is called when none of this is used any more.
	Done func()
}

// Lent is a body in memory that may be wanted back.
type Lent interface {
	// Lease is for who may have to wait for the client, from what is left to be sent on. It takes the place of the answer's Done, which is not called
	// any more. Client is whom it counts for; not valid: nobody.
	Lease(from int64, client netip.Addr) Lease
}

// Lease is a body that is read from its beginning to its end, as slowly as the client takes it.
type Lease interface {
	// ReadAt copies what is at an offset, which is none before what was read last. An error is that the body has ended, or that what is left is gone:
	// then the answer is to be cut short.
	io.ReaderAt
	// Hold has what is left, which begins at an offset of the body, stay until Release, which is told where it begins then; nobody waits in between. It
	// is in the answer's File, or else it is rest. Not ok: it is gone, and there is no Release.
	Hold(at int64) (rest []byte, file, ok bool)
	Release(at int64)
	// Close ends the use of the body.
	Close()
}

// Quick answers a request of the plain form at once, without waiting for anything and without allocation, or says that it
// does not: then the request is served as any other. It is called by many goroutines at a time.
type Quick func(q *Request, a *Response) bool

// Relay answers a request of the plain form by asking somebody else, on the goroutine that it is called on; it waits for a second at
// most. Room is called when the answer is there, for the room in a.Head, and a.Done when a.Body was used. If it is not answered, it is to be
// served as any other, and what was begun for it, if anything was, goes on with that: see Begin.
type Relay func(q *Request, a *Response, room func() []byte) (answered bool, begun Begun)

// Begun is what a Relay has begun.
type Begun interface {
	// Drop ends it, unless somebody goes on with it.
	Drop()
}

type begunKey struct{}

// Begin has a request's context tell what was begun for it.
func Begin(ctx context.Context, b Begun) context.Context {
	return context.WithValue(ctx, begunKey{}, b)
}

// BegunFor is what was begun for a request; nil: nothing.
func BegunFor(ctx context.Context) Begun {
	b, _ := ctx.Value(begunKey{}).(Begun)
	return b
}
