package roster

import (
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/perigee-net/perigee/cluster/identity"
	"github.com/perigee-net/perigee/cluster/store"
)

// TicketKeyTime is how long one key seals the session tickets of the world's doors. It is known to all nodes for as long before,
// and is read for as long afterwards: so a ticket resumes for 12 to 24 h, at any node that has heard of the cluster in the last 12 h.
const TicketKeyTime = 12 * time.Hour

// TicketKey is one key of session tickets. Its name is a number, counted up. Of the three that there are, the one introduced
// is to be the next.
type TicketKey struct {
	Name       string    `json:"-"`
	Stage      Stage     `json:"stage"`
	Since      time.Time `json:"since"`
	Introduced uint64    `json:"introduced"` // the revision at which it came
	Key        []byte    `json:"key"`        // 32 bytes, sealed by the cluster key
}

func (k TicketKey) name() string { return k.Name }
func (k TicketKey) stage() Stage { return k.Stage }

func (k *TicketKey) finish(name string) error {
	k.Name = name
	return nil
}

func ticketContext(name string) string { return "perigee ticket key " + name }

// Tickets opens the ticket keys by the cluster key: the one to seal by first, then those that are read. None: no release
// that knows them has led the cluster yet.
func (r *Roster) Tickets(key identity.Key) ([][32]byte, error) {
	var all [][32]byte
	for _, k := range r.TicketKeys {
		plain, err := key.Open(k.Key, ticketContext(k.Name))
		if err != nil {
			return nil, fmt.Errorf("open ticket key %s: %w", k.Name, err)
		}
		opened, err := identity.ReadKey(plain)
		if err != nil {
			return nil, fmt.Errorf("open ticket key %s: %w", k.Name, err)
		}
		all = append(all, opened)
	}
	return all, nil
}

// RotateTickets makes the ticket keys' next step, if one is due: the next becomes the one in use, that is read on, and the one
// before is dropped. It waits for nobody: who missed it for a whole TicketKeyTime has its clients make full handshakes. A
// revocation ends all keys at once, for who was revoked knew them.
func (r *Roster) RotateTickets(keys identity.Keys, now time.Time) (store.Change, bool, error) {
	now = r.judged(now)
	switch {
	case len(r.TicketKeys) == 0:
		c := r.change("cluster", now, "ticket keys made")
		return c, true, r.freshTickets(&c, keys.Cluster, now)
	case r.ticketsKnown():
		c := r.change("cluster", now, "ticket keys replaced: a node was revoked that knew them")
		for _, k := range r.TicketKeys {
			drop(&c, kindTicketKey, k.Name)
		}
		return c, true, r.freshTickets(&c, keys.Cluster, now)
	case now.Before(r.TicketKeys[0].Since.Add(TicketKeyTime)):
		return store.Change{}, false, nil
	}
	c := r.change("cluster", now, "ticket keys rotated")
	var err error
	for _, k := range r.TicketKeys {
		switch k.Stage {
		case Introduced:
			k.Stage, k.Since = Used, now
		case Used:
			k.Stage, k.Since = Retiring, now
		default:
			drop(&c, kindTicketKey, k.Name)
			continue
		}
		err = errors.Join(err, r.put(&c, kindTicketKey, k.Name, k))
	}
	stage := Introduced
	if at(r.TicketKeys, Introduced) < 0 {
		stage = Used
	}
	return c, true, errors.Join(err, r.addTicket(&c, 1, keys.Cluster, stage, now))
}

// ticketsKnown says whether a node was revoked that knew one of the keys.
func (r *Roster) ticketsKnown() bool {
	oldest := r.TicketKeys[0].Introduced
	for _, k := range r.TicketKeys {
		oldest = min(oldest, k.Introduced)
	}
	for _, v := range r.Revocations {
		if !v.Forgotten && v.Epoch > oldest {
			return true
		}
	}
	return false
}

// freshTickets adds a key to use and the next one.
func (r *Roster) freshTickets(c *store.Change, key identity.Key, now time.Time) error {
	return errors.Join(r.addTicket(c, 1, key, Used, now), r.addTicket(c, 2, key, Introduced, now))
}

// addTicket adds a key whose number is so many above the highest there is.
func (r *Roster) addTicket(c *store.Change, above int, key identity.Key, stage Stage, now time.Time) error {
	highest := 0
	for _, k := range r.TicketKeys {
		if n, err := strconv.Atoi(k.Name); err == nil {
			highest = max(highest, n)
		}
	}
	name, fresh := strconv.Itoa(highest+above), identity.NewKey()
	return r.put(c, kindTicketKey, name, TicketKey{
		Stage: stage, Since: now, Introduced: r.Revision + 1, Key: key.Seal(fresh[:], ticketContext(name)),
	})
}
