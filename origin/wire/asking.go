package wire

import (
	"errors"
	"net/http"
	"sync"
	"time"

	"github.com/perigee-net/perigee/edge/http1"
)

// Asking is a GET or HEAD that is made as bytes, and whose response is passed on as bytes, if it is of the plain form and comes soon, as a
// whole. Then it allocates nothing. Else it goes on as a Call, with the request that the bytes stand for. It is one goroutine's at a time.
type Asking struct {
	// Head is the head of the request, which who asks appends to it. It must be of the plain form, but for its Host.
	Head []byte
	// Reply and Body are the response, good until Done. A Body of a HEAD is empty.
	Reply http1.PlainReply
	Body  []byte
	// End is Done.
	End func()

	call   Call
	on     exchange
	fields [askedFields]http1.Field // of most replies
}

// askedFields is how many fields a reply may have without an allocation.
const askedFields = 24

// errNotPlain: the response is not of the plain form, or not all of it has come, or it is too long to be held as a whole.
var errNotPlain = errors.New("the response is not plain")

var askings = sync.Pool{New: func() any { return new(Asking) }}

// Asking makes ready to ask, now. It is to be ended by Done, after Soon was true, or else by Call or Drop.
func (c *Client) Asking(isHead bool, now time.Time) *Asking {
	a := askings.Get().(*Asking)
	if a.End == nil {
		a.End = a.Done
	}
	a.call = Call{client: c, sort: sort{head: isHead, repeatable: true}, spare: &a.on, now: now}
	return a
}

// Soon asks that address, "host:port", as Call.Soon does. It says whether Reply and Body are the response.
func (a *Asking) Soon(address string) bool {
	a.call.to, a.call.head = address, a.Head
	a.Reply.Fields = a.fields[:0]
	if a.call.soon(&a.Reply) != nil {
		return false
	}
	c := a.call.on.conn // not always of a.on: what was asked first may have ended
	a.Body = c.buf[c.start+a.Reply.Bytes : c.end]
	return true
}

// Header is the header of Reply as of the response to a Call, but for fields that concern the connection.
func (a *Asking) Header() (http.Header, error) {
	c := a.call.on.conn
	reply, err := http1.ReadReply(c.buf[c.start : c.start+a.Reply.Bytes])
	return reply.Header, err
}

// Done ends what was answered, and keeps the connection.
func (a *Asking) Done() {
	c, client, began := a.call.on.conn, a.call.client, a.call.on.began
	if a.Head = a.Head[:0]; cap(a.Head) > maxHeadKept {
		a.Head = nil
	}
	a.call, a.on, a.Body = Call{}, exchange{}, nil
	askings.Put(a)
	c.rest()
	client.pool.put(c, began)
}

// Call goes on with what Soon has not answered, for that request. Who watches is told what has happened by now.
func (a *Asking) Call(q *http.Request, watch Watch) *Call {
	c := &a.call
	c.q, c.watch = q, watch
	if x := c.on; x != nil {
		if x.q = q; watch != nil {
			watch.Sending(x.conn.used)
			if x.asked {
				watch.Answered()
			}
		}
	}
	return c
}

// Drop ends what Soon has not answered.
func (a *Asking) Drop() {
	if a.call.on != nil {
		a.call.on.abort()
	}
}

// askPlain is ask for a response of the plain form, as a whole.
func (x *exchange) askPlain(head []byte, watch Watch, patience time.Duration, plain *http1.PlainReply) error {
	if err := x.send(head, watch, patience); err != nil {
		return err
	}
	for c := x.conn; ; {
		unread := c.unread()
		need := int64(0)
		switch plain.Parse(unread) {
		case http1.Other:
			return errNotPlain
		case http1.Plain:
			if need = int64(plain.Bytes); !x.sort.head {
				need += plain.Length
			}
			if need == int64(len(unread)) && plain.Bytes <= x.bound && c.keepable() {
				return nil
			}
			if need <= int64(len(unread)) {
				return errNotPlain
			}
		}
		if c.end == len(c.buf) || need > int64(len(c.buf)-c.start) {
			return errNotPlain
		}
		switch err := c.fill(); {
		case timedOut(err):
			return err
		case err != nil:
			return errNotPlain // whoever reads on meets it again
		}
	}
}
