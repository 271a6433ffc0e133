package api

import (
	"errors"
	"fmt"
	"net/http"
)

// Error is every refusal of the API.
type Error struct {
	Status  int      `json:"status"` // of HTTP (RFC 9110 section 15)
	Message string   `json:"message"`
	Faults  []string `json:"faults,omitempty"` // of a spec: file, line, resource, field, what
	// RetryAfter is when to ask again, in seconds; it is sent as the header of that name too.
	RetryAfter int `json:"retryAfter,omitempty"`
}

func (e *Error) Error() string {
	if len(e.Faults) == 0 {
		return e.Message
	}
	text := e.Message
	for _, f := range e.Faults {
		text += "\n" + f
	}
	return text
}

func refuse(status int, format string, args ...any) *Error {
	return &Error{Status: status, Message: fmt.Sprintf(format, args...)}
}

var (
	// ErrNotLeader is what a Backend returns where the leader must answer, before it has done or read anything.
	ErrNotLeader = errors.New("this node is not the leader")
	// ErrIsLeader is what Forward returns on a node that has become the leader.
	ErrIsLeader = errors.New("this node is the leader")
	// ErrNoLeader is what Forward returns where no leader is to be reached.
	ErrNoLeader = errors.New("no leader is reached, so no change is taken")
	// ErrBusy is what a Backend returns that has too much to do: 429, to be asked again in a second.
	ErrBusy = errors.New("too much is asked of this node at once: ask again")
)

// refusal is an error as it is sent.
func refusal(err error) *Error {
	var e *Error
	var long *http.MaxBytesError
	switch {
	case errors.As(err, &e):
		return e
	case errors.As(err, &long):
		return refuse(http.StatusRequestEntityTooLarge, "the body is longer than %d bytes", long.Limit)
	case errors.Is(err, ErrBusy):
		return &Error{Status: http.StatusTooManyRequests, Message: err.Error(), RetryAfter: 1}
	case errors.Is(err, ErrNotLeader), errors.Is(err, ErrNoLeader), errors.Is(err, ErrIsLeader):
		return &Error{Status: http.StatusServiceUnavailable, Message: err.Error(), RetryAfter: 1}
	}
	return refuse(http.StatusInternalServerError, "%v", err)
}

// Conflict is the answer to a change that was made for another revision than the one it came to: 412 (RFC 9110
// section 13.1.1) to whoever said which by If-Match.
func Conflict(expected, actual uint64) *Error {
	return refuse(http.StatusPreconditionFailed, "the change expects revision %d, the network is at %d", expected, actual)
}

// Forbidden is the answer to whoever may not touch a resource.
func Forbidden(by Principal, kind, name string) *Error {
	return refuse(http.StatusForbidden, "%s may not touch %s/%s: it is limited to named resources", by.Name, kind, name)
}

// Touch refuses changes of which one is of a resource that the principal may not touch. A Backend calls it with what
// a change or a rollback would do, before anything is done.
func Touch(by Principal, changes []Change) error {
	for _, c := range changes {
		if !by.MayTouch(c.Kind, c.Name) {
			return Forbidden(by, c.Kind, c.Name)
		}
	}
	return nil
}
