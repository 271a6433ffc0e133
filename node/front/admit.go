package front

import "net"

// admit judges a guest as it comes, or when its PROXY header has said who it is. One that is blocked, or that the door does not
// let in, is turned away: its connection is reset. Of whom nobody knows yet is judged later.
func (f *Front) admit(c net.Conn, g *guest) bool {
	switch from := g.from.Load(); {
	case from == nil:
	case f.blocks(g):
		f.expel(c)
		return false
	case g.allowed != nil && !g.allowed(*from):
		f.counters.notAllowed.Add(1)
		reset(c)
		return false
	}
	return true
}

// reset closes a connection so that nothing that waits to be sent goes out.
func reset(c net.Conn) {
	if l, ok := c.(interface{ SetLinger(int) error }); ok {
		l.SetLinger(0)
	}
	c.Close()
}
