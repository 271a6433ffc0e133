package zone

import (
	"iter"
	"slices"
)

// index finds zones by the hash of their names. It is never changed; one that differs in some zones shares the parts that have none of
// them. The zero index has none.
type index struct {
	parts  [256][]*Zone         // each a power of two, at most half full
	depths [maxLabels + 1]int32 // how many zones have a name of so many labels
}

// partBits is how much of a hash finds the place within a part.
const partBits = 32

func part(hash uint64) int { return int(hash>>partBits) & 255 }

func (x *index) get(hash uint64, wire []byte) *Zone {
	slots := x.parts[part(hash)]
	if len(slots) == 0 {
		return nil
	}
	mask := uint64(len(slots) - 1)
	for i := hash & mask; ; i = (i + 1) & mask {
		z := slots[i]
		if z == nil || z.hash == hash && string(z.wire) == string(wire) {
			return z
		}
	}
}

func (x *index) all() iter.Seq[*Zone] {
	return func(yield func(*Zone) bool) {
		for _, part := range x.parts {
			for _, z := range part {
				if z != nil && !yield(z) {
					return
				}
			}
		}
	}
}

// with is the index without the zones that are gone and with those that come.
func (x *index) with(gone, come []*Zone) *index {
	next := *x
	var changed [256][]*Zone
	for _, z := range come {
		changed[part(z.hash)] = append(changed[part(z.hash)], z)
		next.depths[z.labels]++
	}
	lost := map[*Zone]bool{}
	var touched [256]bool
	for _, z := range gone {
		lost[z], touched[part(z.hash)] = true, true
		next.depths[z.labels]--
	}
	for p, zones := range changed {
		if len(zones) == 0 && !touched[p] {
			continue
		}
		for _, z := range x.parts[p] {
			if z != nil && !lost[z] {
				zones = append(zones, z)
			}
		}
		next.parts[p] = hashed(zones)
	}
	return &next
}

func hashed(zones []*Zone) []*Zone {
	if len(zones) == 0 {
		return nil
	}
	size := 2
	for size < 2*len(zones) {
		size *= 2
	}
	slots := slices.Repeat([]*Zone{nil}, size)
	mask := uint64(size - 1)
	for _, z := range zones {
		i := z.hash & mask
		for slots[i] != nil {
			i = (i + 1) & mask
		}
		slots[i] = z
	}
	return slots
}
