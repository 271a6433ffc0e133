package spec

import (
	"encoding/base64"
	"net/netip"
	"slices"
	"strings"
)

// minTSIGSecret is how many bytes a secret has at least: 128 bits are what nobody guesses.
const minTSIGSecret = 16

// Key is the secret itself; nil where it is no base64, which Build does not let pass.
func (k *TsigKey) Key() []byte {
	key, err := base64.StdEncoding.DecodeString(string(k.Secret.Reveal()))
	if err != nil {
		return nil
	}
	return key
}

// Admits says whether it lets in who asks from an address and has signed by a key; "" has not signed.
func (a *TransferAllow) Admits(from netip.Addr, key string) bool {
	if a.Key != "" && a.Key != key {
		return false
	}
	return len(a.CIDRs) == 0 || slices.ContainsFunc(a.CIDRs, func(p netip.Prefix) bool { return p.Contains(from) })
}

// Secondary says whether the zone is a copy of another server's.
func (z *HostedZone) Secondary() bool { return len(z.Primaries) > 0 }

// AddrPort is where it is asked.
func (p *ZonePeer) AddrPort() netip.AddrPort { return netip.AddrPortFrom(p.Address, p.Port) }

func (c check) tsigKey(k *TsigKey) {
	name := strings.TrimSuffix(strings.ToLower(k.Name), ".")
	if problem := domainProblem(name); problem != "" {
		c.fault("name", "%.80q is not a domain name: %s", k.Name, problem)
	} else if name != k.Name {
		c.fault("name", "must be in small letters and without a trailing dot: %s", name)
	}
	if c.told("secret") || k.Secret == (Secret{}) {
		return
	}
	switch key := k.Key(); {
	case key == nil:
		c.fault("secret", "must be base64, as tsig-keygen prints it")
	case len(key) < minTSIGSecret:
		c.fault("secret", "is of %d bits: at least %d", 8*len(key), 8*minTSIGSecret)
	}
}

// transfer judges who may have a zone, and who is told.
func (c check) transfer(t *ZoneTransfer) {
	for i := range t.Allow {
		a, field := &t.Allow[i], at("transfer.allow", i)
		if len(a.CIDRs) == 0 && a.Key == "" && !c.told(field) {
			c.fault(field, "must have cidrs or a key, or both")
		}
		c.tsig(field+".key", a.Key)
	}
	c.peers("transfer.notify", t.Notify)
}

// secondary judges a zone that is another's: what it would have of its own it cannot have.
func (c check) secondary(z *HostedZone) {
	c.peers("primaries", z.Primaries)
	if !z.Secondary() {
		return
	}
	if z.Records.Len() > 0 {
		c.fault("records", "a zone with primaries has their records: it can have none of its own")
	}
	if len(z.NameServers) > 0 {
		c.fault("nameServers", "a zone with primaries has their name servers")
	}
	if len(z.Update.Allow) > 0 {
		c.fault("update", "a zone with primaries takes no updates: its primary may")
	}
}

func (c check) peers(list string, peers []ZonePeer) {
	seen := map[netip.AddrPort]bool{}
	for i := range peers {
		p, field := &peers[i], at(list, i)
		c.unicast(field+".address", p.Address)
		if seen[p.AddrPort()] {
			c.fault(field, "%s is in the list twice", p.AddrPort())
		}
		seen[p.AddrPort()] = p.Address.IsValid()
		c.tsig(field+".key", p.Key)
	}
}

func (c check) tsig(field, name string) {
	find(c, field, "TsigKey", c.spec.TsigKeys, name)
}

// signedBy says whether the zone names one of the keys.
func (z *HostedZone) signedBy(keys *texts) bool {
	if keys == nil {
		return false
	}
	by := func(p ZonePeer) bool { return keys.has(p.Key) }
	return slices.ContainsFunc(z.Update.Allow, func(a UpdateAllow) bool { return keys.has(a.Key) }) ||
		slices.ContainsFunc(z.Transfer.Allow, func(a TransferAllow) bool { return keys.has(a.Key) }) ||
		slices.ContainsFunc(z.Transfer.Notify, by) || slices.ContainsFunc(z.Primaries, by)
}
