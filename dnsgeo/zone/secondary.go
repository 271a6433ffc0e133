package zone

import (
	"encoding/binary"

	"github.com/perigee-net/perigee/cluster/spec"
)

// Silence is why a secondary zone has nothing to answer with. The zero Silence is of one that answers.
type Silence uint8

// The kinds of silence.
const (
	Speaks  Silence = iota
	NotYet          // nothing was taken from a primary yet
	Expired         // no primary was reached for as long as the SOA lets a copy stand
)

// Silence is why the zone has nothing to answer with: then it is not to be looked into.
func (z *Zone) Silence() Silence { return z.silent }

// made says whether the zone's SOA and name servers are made, not among its records.
func (z *Zone) made() bool { return z.hosted != nil && !z.hosted.Secondary() }

// Serial is that of a zone of plain records; 0 if it is silent.
func (z *Zone) Serial() uint32 {
	if z.soa.N == 0 {
		return 0
	}
	data, _ := z.soa.Next()
	return binary.BigEndian.Uint32(data[len(data)-20:])
}

// SOA is that of a zone of plain records; of a silent one it has no record.
func (z *Zone) SOA() Set { return z.soa }

// Of is the zone of plain records as that of a spec.
func (z *Zone) Of(hosted *spec.HostedZone) *Zone {
	return &Zone{
		Name: z.Name, wire: z.wire, labels: z.labels, hash: z.hash, shards: z.shards, names: z.names, cuts: z.cuts, apex: z.apex,
		soa: z.soa, silent: z.silent, hosted: hosted,
	}
}

// Silent is a secondary zone of a spec without a record.
func Silent(hosted *spec.HostedZone, why Silence) (*Zone, error) {
	e, err := newEdit(hosted.Name, 0)
	if err != nil {
		return nil, err
	}
	z := e.next
	z.hosted, z.silent = hosted, why
	return z, nil
}

// secondary is a secondary zone of a spec with the records that it had before; silent if it had none.
func secondary(hosted *spec.HostedZone, before *Zone) (*Zone, error) {
	if before != nil && before.hosted.Secondary() {
		return before.Of(hosted), nil
	}
	return Silent(hosted, NotYet)
}

// With is the table with another version of a zone that it has.
func (t *Table) With(z *Zone) *Table {
	return &Table{
		spec: t.spec, servers: t.servers, blocks: t.blocks,
		zones: t.zones.with([]*Zone{t.zones.get(z.hash, z.wire)}, []*Zone{z}),
	}
}

// Newer says whether a serial is after another (RFC 1982 §3.2). Of two that are half the circle apart neither is.
func Newer(a, b uint32) bool { return a != b && a-b < 1<<31 }
