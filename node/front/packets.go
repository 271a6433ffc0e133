package front

import (
	"net"
)

// packetDoor is an open door for datagrams.
type packetDoor struct {
	conn net.PacketConn
	over chan struct{} // closed when it is served no more
}

// setPackets makes these the doors for datagrams. Those that stand stay as they are; one whose service has ended is opened anew. f.mu is held.
func (f *Front) setPackets(doors []*Door) (faults []error) {
	wanted := map[doorKey]bool{}
	for _, d := range doors {
		wanted[d.key()] = true
	}
	for key, open := range f.packets {
		if !wanted[key] || open.ended() {
			open.conn.Close()
			<-open.over // the next may want its address
			delete(f.packets, key)
		}
	}
	for _, d := range doors {
		if f.packets[d.key()] != nil {
			continue
		}
		listen := f.config.ListenPacket
		if d.Anycast {
			listen = f.config.ListenPacketAnycast
		}
		conn, err := listen("udp", d.key().at())
		if err != nil {
			faults = append(faults, &Fault{d.Network, d.Address, err})
			continue
		}
		open := &packetDoor{conn: conn, over: make(chan struct{})}
		f.packets[d.key()] = open
		f.wg.Go(func() {
			defer close(open.over)
			if err := d.Packets(conn); err != nil {
				f.config.Log.Error("a door for datagrams has ended", "door", d.key(), "error", err)
			}
		})
	}
	return faults
}

func (d *packetDoor) ended() bool {
	select {
	case <-d.over:
		return true
	default:
		return false
	}
}

// closePackets closes all doors for datagrams.
func (f *Front) closePackets() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, d := range f.packets {
		d.conn.Close()
	}
	clear(f.packets)
}
