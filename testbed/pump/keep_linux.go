package pump

// none is the slot of a packet that cannot be kept.
const none = ^uint32(0)

// slab is how many packets the store grows by.
const slab = 256

// store is where packets under way are kept. It grows until it has room for most packets and never shrinks; the slot used last is used
// next, since the processor's caches still have it.
type store struct {
	most    int // a multiple of slab
	slabs   [][]byte
	free    []uint32
	nowhere [PacketSize]byte // what a packet is read into that cannot be kept
}

// take returns a slot and its bytes; the slot is none where all are in use, and the bytes are good until the next take.
func (s *store) take() (uint32, []byte) {
	if len(s.free) == 0 {
		if len(s.slabs)*slab >= s.most {
			return none, s.nowhere[:]
		}
		first := uint32(len(s.slabs) * slab)
		s.slabs = append(s.slabs, make([]byte, slab*PacketSize))
		for i := uint32(slab); i > 0; i-- {
			s.free = append(s.free, first+i-1)
		}
	}
	slot := s.free[len(s.free)-1]
	s.free = s.free[:len(s.free)-1]
	return slot, s.packet(slot)
}

func (s *store) put(slot uint32) {
	if slot != none {
		s.free = append(s.free, slot)
	}
}

func (s *store) packet(slot uint32) []byte {
	at := slot % slab * PacketSize
	return s.slabs[slot/slab][at : at+PacketSize]
}

// heap has the directions that keep something, the one whose next packet is due first at its top.
type heap []*direction

func (h *heap) add(d *direction) {
	d.place = len(*h)
	*h = append(*h, d)
	h.up(d.place)
}

func (h *heap) remove(d *direction) {
	i, last := d.place, len(*h)-1
	(*h)[i] = (*h)[last]
	(*h)[i].place = i
	(*h)[last] = nil
	*h = (*h)[:last]
	if i < last {
		h.down(i)
		h.up(i)
	}
	d.place = -1
}

func (h heap) up(i int) {
	for i > 0 {
		parent := (i - 1) / 2
		if h[parent].next <= h[i].next {
			return
		}
		h.swap(i, parent)
		i = parent
	}
}

func (h heap) down(i int) {
	for {
		least := i
		for _, child := range [2]int{2*i + 1, 2*i + 2} {
			if child < len(h) && h[child].next < h[least].next {
				least = child
			}
		}
		if least == i {
			return
		}
		h.swap(i, least)
		i = least
	}
}

func (h heap) swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].place, h[j].place = i, j
}
