package dnsgeo

import (
	"net/netip"
	"time"

	"github.com/miekg/dns"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/dnsgeo/tsig"
	"github.com/perigee-net/perigee/dnsgeo/zone"
)

// keysOf are the TSIG keys of a spec.
func keysOf(s *spec.Spec) map[string]*tsig.Key {
	keys := map[string]*tsig.Key{}
	for _, k := range s.TsigKeys {
		if wire, key := keyOf(k); key != nil {
			keys[string(wire)] = key
		}
	}
	return keys
}

// keyOf is a key of the spec, and its name in wire form.
func keyOf(k *spec.TsigKey) ([]byte, *tsig.Key) {
	var name zone.Name
	if name.Parse(k.Name) != nil {
		return nil, nil // no name that spec lets pass
	}
	return name.Wire(), tsig.NewKey(k.Name, name.Wire(), k.Algorithm, k.Key())
}

// key is the key that a message says it is signed by, nil if there is none of that name.
func (t *Table) key(s *tsig.Signature) *tsig.Key {
	if t == nil {
		return nil
	}
	return t.keys[string(s.Name)]
}

// keyOf is the key of a name as the spec has it, nil if there is none.
func (t *Table) keyOf(name string) *tsig.Key {
	var n zone.Name
	if n.Parse(name) != nil {
		return nil
	}
	return t.keys[string(n.Wire())]
}

// respondSigned makes the response to a message that has a TSIG record: it is signed by the same key. It takes memory. An update is left
// pending.
func (d *desk) respondSigned(room, m []byte, r *request, from netip.Addr, by Transport) []byte {
	s, now := d.server, time.Now()
	signature := tsig.Find(m)
	if signature == nil { // it is not the last record, or not alone
		s.counts.badForm.Add(1)
		return d.make(room, m, r, dns.RcodeFormatError, from, by)
	}
	plain := tsig.Strip(m, signature)
	key := s.table.Load().key(signature)
	mac, wrong := key.Verify(m, signature, tsig.MAC{}, now)
	rcode := dns.RcodeNotAuth
	switch wrong {
	case 0:
		s.counts.signed.Add(1)
		r.key = key
		rcode = dns.RcodeSuccess
	case tsig.BadKey:
		s.counts.badKey.Add(1)
	case tsig.BadSig:
		s.counts.badSig.Add(1)
	case tsig.BadTime:
		s.counts.badTime.Add(1)
	case tsig.BadTrunc:
		s.counts.badTrunc.Add(1)
	default:
		s.counts.badForm.Add(1)
		return d.make(room, plain, r, dns.RcodeFormatError, from, by)
	}
	if r.opcode == dns.OpcodeUpdate && rcode == dns.RcodeSuccess {
		if d.update, rcode = s.admitUpdate(m, plain, r, mac, from, by); d.update != nil {
			return nil
		}
	}
	response := d.make(room, plain, r, rcode, from, by)
	switch {
	case response == nil:
	case wrong != 0:
		response = key.Refuse(response, signature, mac, wrong, now)
	default:
		response, _ = key.Sign(response, mac, now)
	}
	return response
}
