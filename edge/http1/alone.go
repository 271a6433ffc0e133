package http1

import "context"

type aloneKey struct{}

// Alone says, in the context of an ambiguous request, that whoever passes the request on must do so on a connection that is
// closed after it: at the other end it may be taken for more than one request.
func Alone(ctx context.Context) context.Context { return context.WithValue(ctx, aloneKey{}, true) }

// IsAlone says whether a request is to be passed on like that.
func IsAlone(ctx context.Context) bool { return ctx.Value(aloneKey{}) != nil }
