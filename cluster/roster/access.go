package roster

import (
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/perigee-net/perigee/cluster/identity"
)

// Role is a right at the API.
type Role string

const (
	RoleRead    Role = "read"
	RoleOperate Role = "operate" // changes resources; may read
	RolePurge   Role = "purge"   // empties caches; may read
	RoleAdmin   Role = "admin"   // everything
)

func allRoles() []Role { return []Role{RoleRead, RoleOperate, RolePurge, RoleAdmin} }

func joined(roles []Role) string {
	var names []string
	for _, r := range roles {
		names = append(names, string(r))
	}
	return strings.Join(names, ", ")
}

// Principal is who asks the API for something.
type Principal struct {
	Name      string // as it stands in the history
	Roles     []Role
	Resources []string // globs Kind/name of what it may change and see; none: all
}

// May says whether the principal has a role, be it by one that includes it. A role that is not known here is nobody's
// but an admin's.
func (p Principal) May(role Role) bool {
	return slices.ContainsFunc(p.Roles, func(has Role) bool {
		return has == role || has == RoleAdmin || role == RoleRead && (has == RoleOperate || has == RolePurge)
	})
}

// MayTouch says whether a resource is among those that the principal is limited to. Whether it may read or change it is
// its roles' to say.
func (p Principal) MayTouch(kind, name string) bool {
	return len(p.Resources) == 0 || slices.ContainsFunc(p.Resources, func(glob string) bool {
		kinds, names, _ := strings.Cut(glob, "/")
		return matches(kinds, kind) && matches(names, name)
	})
}

// matches says whether a glob stands for the whole of s: * is any run of characters, ? is one. A glob that is not well
// formed stands for nothing.
func matches(glob, s string) bool {
	// To path.Match a slash in s would end what * stands for.
	found, err := path.Match(glob, strings.ReplaceAll(s, "/", "\x00"))
	return err == nil && found
}

func checkGlob(glob string) error {
	kinds, names, ok := strings.Cut(glob, "/")
	switch {
	case !ok || kinds == "" || names == "":
		return errors.New("want Kind/name, where * stands for any text")
	case len(glob) > maxGlob:
		return fmt.Errorf("%d bytes: at most %d", len(glob), maxGlob)
	case strings.ContainsAny(glob, "[]\\") || strings.Contains(names, "/"):
		return errors.New("only * and ? stand for other text")
	}
	return nil
}

// Authenticate finds whose an access token is. The error says what is wrong with it, and nothing of what it should be.
func (r *Roster) Authenticate(bearer string, now time.Time) (Principal, error) {
	token, err := identity.ParseAccessToken(bearer)
	if err != nil {
		return Principal{}, err
	}
	a, known := r.Access[r.byID[hex.EncodeToString(token.ID[:])]]
	hash := token.Hash()
	switch {
	case !known || subtle.ConstantTimeCompare(hash[:], a.Hash) != 1:
		return Principal{}, errors.New("access token is wrong, was deleted, or ended more than a day ago")
	case !a.live(r.judged(now)):
		return Principal{}, fmt.Errorf("access token %s expired on %s", a.Name, a.Expires.Format(time.RFC3339))
	}
	return Principal{Name: a.Name + "@access", Roles: a.Roles, Resources: a.Resources}, nil
}
