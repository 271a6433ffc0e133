package bed

import (
	"context"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Reaches is the host or router to which routing leads an address from a host or site, asked of one router's kernel after
// the other. Of several equal ways it follows one. That the host hears and answers is not said by it.
func (b *Bed) Reaches(ctx context.Context, from string, addr netip.Addr) (string, error) {
	w := b.World()
	at, ok := w.Site(from)
	if !ok {
		h, err := b.machine(from)
		if err != nil {
			return "", err
		}
		if h.V4 == addr || h.V6 == addr {
			return h.Name, nil
		}
		at, _ = w.Site(h.Site)
	}
	var path []string
	for range len(w.Sites) + 1 {
		if ctx.Err() != nil {
			return "", ctx.Err()
		}
		path = append(path, at.Router())
		n, err := b.space(at.Router())
		if err != nil {
			return "", err
		}
		hop, err := n.Lookup(addr)
		if err != nil {
			return "", fmt.Errorf("from %s to %s, by %s: %w", from, addr, strings.Join(path, " "), err)
		}
		if hop.Local {
			return at.Router(), nil
		}
		if number, isHost := strings.CutPrefix(hop.Link, hostDevice); isHost {
			for _, h := range w.Hosts {
				if h.Site == at.Name && strconv.Itoa(h.Number) == number {
					return h.Name, nil
				}
			}
			return "", fmt.Errorf("from %s to %s: host %s of %s is not known", from, addr, number, at.Name)
		}
		next, isSite := strings.CutPrefix(hop.Link, wanDevice)
		if at, ok = w.Site(next); !isSite || !ok {
			return "", fmt.Errorf("from %s to %s: the link %s of %s leads nowhere", from, addr, hop.Link, path[len(path)-1])
		}
	}
	return "", fmt.Errorf("from %s to %s: routing goes in a circle: %s", from, addr, strings.Join(path, " "))
}
