package node

import (
	"crypto/tls"
	"fmt"
	"maps"
	"slices"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/node/front"
)

// certified gives the certificates of a spec to the doors (a plane). Those that stay as they are are not read again.
type certified struct {
	to   *front.Certificates
	read map[*spec.Certificate]*tls.Certificate
}

// Apply implements plane. A certificate whose key this node cannot use refuses the spec.
func (c *certified) Apply(s *spec.Spec) error {
	read := make(map[*spec.Certificate]*tls.Certificate, len(s.Certificates))
	var all []*tls.Certificate
	for _, name := range slices.Sorted(maps.Keys(s.Certificates)) {
		one := s.Certificates[name]
		known := c.read[one]
		if known == nil {
			made, err := one.TLS()
			if err != nil {
				return fmt.Errorf("certificate %s: %w", name, err)
			}
			known = &made
		}
		read[one] = known
		all = append(all, known)
	}
	c.read = read
	c.to.Set(all)
	return nil
}
