package api

import (
	"context"
	"errors"
	"net"
	"net/http"
	"strings"
	"unicode"

	"github.com/perigee-net/perigee/cluster/roster"
)

// Principal is who asks, and what it may.
type Principal = roster.Principal

// Role is a right at the API.
type Role = roster.Role

// The roles: read is in operate and purge, and all are in admin.
const (
	Read    = roster.RoleRead    // sees everything but secrets
	Operate = roster.RoleOperate // changes the spec
	Purge   = roster.RolePurge   // removes what is cached
	Admin   = roster.RoleAdmin   // changes the cluster: nodes, tokens, keys, snapshots
)

const (
	// ForwardedBy names the node that forwarded a request. A forwarded request is not forwarded again:
	// two nodes that each take the other for the leader must not send it back and forth.
	ForwardedBy = "Perigee-Forwarded-By"

	// OnBehalfOf names the local caller that a node forwards a request for. It is believed at the control port only.
	OnBehalfOf = "Perigee-On-Behalf-Of"

	// maxCaller bounds the name in OnBehalfOf, in bytes.
	maxCaller = 128

	// maxBearer bounds a token, in bytes; a longer one is wrong without being looked up.
	maxBearer = 512
)

// Who says who asks, or refuses: a door has one.
type Who func(*http.Request) (Principal, error)

// ByToken knows people by their access tokens (RFC 6750 section 2.1).
func ByToken(b Backend) Who {
	return func(r *http.Request) (Principal, error) {
		bearer, err := bearerOf(r)
		if err != nil {
			return Principal{}, err
		}
		if bearer == "" {
			return Principal{}, refuse(http.StatusUnauthorized, "an access token is needed, as the header Authorization: Bearer TOKEN")
		}
		return authenticate(b, bearer)
	}
}

// BySocket knows local users by the credentials of the unix socket that they dialed, and gives all of them one role:
// what they may is decided by who may open the socket. The http.Server needs ConnContext. A token beside it counts for nothing.
func BySocket(role Role) Who {
	return func(r *http.Request) (Principal, error) {
		r.Header.Del("Authorization")
		conn, local := ConnOf(r).(*net.UnixConn)
		if !local {
			return Principal{}, refuse(http.StatusUnauthorized, "not at the unix socket")
		}
		name, err := userOf(conn)
		if err != nil {
			return Principal{}, refuse(http.StatusUnauthorized, "read who is at the socket: %v", err)
		}
		return Principal{Name: name + "@socket", Roles: []Role{role}}, nil
	}
}

// ByNode knows nodes by their certificates; peer is the name of the node at the far end, "" where there is none. A
// forwarded request carries its caller's own token, or the name of a local caller, whom the node vouches for. A node
// that asks for itself may read.
func ByNode(b Backend, peer func(*http.Request) string) Who {
	return func(r *http.Request) (Principal, error) {
		node := peer(r)
		if node == "" {
			return Principal{}, refuse(http.StatusUnauthorized, "only a node of the cluster may ask here")
		}
		bearer, err := bearerOf(r)
		if err != nil {
			return Principal{}, err
		}
		if bearer != "" {
			return authenticate(b, bearer)
		}
		caller := r.Header.Get(OnBehalfOf)
		if caller == "" {
			return Principal{Name: "node " + node, Roles: []Role{Read}}, nil
		}
		if len(caller) > maxCaller || strings.ContainsFunc(caller, func(c rune) bool { return !unicode.IsPrint(c) }) {
			return Principal{}, refuse(http.StatusBadRequest, "%s: not a caller's name", OnBehalfOf)
		}
		role := b.NodeMay(node)
		if role == "" {
			return Principal{}, refuse(http.StatusForbidden, "node %s may not speak for those at its socket", node)
		}
		return Principal{Name: caller + " on " + node, Roles: []Role{role}}, nil
	}
}

// bearerOf is the token that a request shows, "" where it shows none.
func bearerOf(r *http.Request) (string, error) {
	shown := r.Header.Values("Authorization")
	if len(shown) == 0 {
		return "", nil
	}
	scheme, token, _ := strings.Cut(shown[0], " ")
	if len(shown) > 1 || !strings.EqualFold(scheme, "Bearer") || len(token) > maxBearer || strings.TrimSpace(token) == "" {
		return "", refuse(http.StatusUnauthorized, "the header Authorization is not: Bearer TOKEN")
	}
	return strings.TrimSpace(token), nil
}

// authenticate asks whose a token is. The answer never repeats what was shown.
func authenticate(b Backend, bearer string) (Principal, error) {
	by, err := b.Authenticate(bearer)
	var said *Error
	switch {
	case err == nil:
		return by, nil
	case errors.As(err, &said):
		return by, said
	case strings.Contains(err.Error(), bearer):
		return by, refuse(http.StatusUnauthorized, "the access token is refused")
	}
	return by, refuse(http.StatusUnauthorized, "the access token is refused: %v", err)
}

type connKey struct{}

// ConnContext is the ConnContext of the http.Server of a door: it lets a Who see the connection.
func ConnContext(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, c)
}

// ConnOf is the connection that a request came by; nil where the http.Server has no ConnContext.
func ConnOf(r *http.Request) net.Conn {
	c, _ := r.Context().Value(connKey{}).(net.Conn)
	return c
}

type principalKey struct{}

// PrincipalOf is who asks, in the context of a request that a Server serves.
func PrincipalOf(ctx context.Context) Principal {
	by, _ := ctx.Value(principalKey{}).(Principal)
	return by
}
