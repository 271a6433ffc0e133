package gossip

import (
	"bytes"
	"fmt"
	"slices"
	"sync"

	"github.com/hashicorp/memberlist"
)

// keyring is the keys that memberlist reads by, the first of which it encrypts by.
type keyring struct {
	ring memberlist.Keyring
	mu   sync.Mutex // one set at a time
}

// set makes these the keys, while memberlist uses them. The primary is in use first and what is no more wanted
// goes after that, so nothing is ever sent by a key that is not wanted.
func (k *keyring) set(primary []byte, others [][]byte) error {
	wanted := [][]byte{bytes.Clone(primary)}
	for _, key := range others {
		if !holds(wanted, key) {
			wanted = append(wanted, bytes.Clone(key))
		}
	}
	for _, key := range wanted {
		if len(key) != KeySize {
			return fmt.Errorf("key has %d bytes, want %d", len(key), KeySize)
		}
	}
	if len(wanted) > MaxKeyring {
		return fmt.Errorf("%d keys, want at most %d", len(wanted), MaxKeyring)
	}

	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.ring.AddKey(wanted[0]); err != nil {
		return err
	}
	if err := k.ring.UseKey(wanted[0]); err != nil {
		return err
	}
	// Only ever the last key is removed: to remove another, memberlist moves those after it, in memory that it reads
	// without a lock elsewhere. What is removed with it though it is wanted comes back at once below; in a rotation
	// as it is meant that is never so, for the key in use goes before all older ones.
	held := k.ring.GetKeys()
	unwanted := func(key []byte) bool { return !holds(wanted, key) }
	for len(held) > 1 && slices.ContainsFunc(held, unwanted) {
		if err := k.ring.RemoveKey(held[len(held)-1]); err != nil {
			return err
		}
		held = held[:len(held)-1]
	}
	for _, key := range wanted {
		if err := k.ring.AddKey(key); err != nil {
			return err
		}
	}
	return nil
}

func holds(keys [][]byte, key []byte) bool {
	return slices.ContainsFunc(keys, func(k []byte) bool { return bytes.Equal(k, key) })
}
