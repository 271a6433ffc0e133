package identity

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
)

// Key is a secret key that seals texts: AES-256-GCM under keys derived from it. It never prints itself.
type Key [32]byte

// Keys are the keys that a node holds.
type Keys struct {
	Cluster   Key  // held by all nodes: seals the secrets of the spec and the gossip keys
	Authority *Key // held by nodes that may vote, else nil: seals the private keys of authorities
}

// sealFormat is the first byte of a sealed text: 1, a nonce of 12 bytes, the ciphertext, a tag of 16 bytes.
const sealFormat = 1

const (
	nonceSize = 12
	sealExtra = 1 + nonceSize + 16 // bytes by which a sealed text is longer than the plain one
)

// NewKey makes a key by chance.
func NewKey() Key {
	var k Key
	rand.Read(k[:])
	return k
}

// ReadKey takes a key from its 32 bytes.
func ReadKey(b []byte) (Key, error) {
	if len(b) != len(Key{}) {
		return Key{}, fmt.Errorf("key has %d bytes, want %d", len(b), len(Key{}))
	}
	return Key(b), nil
}

// Seal makes a text unreadable and unchangeable for who lacks the key. The context says where the text belongs and must
// be the same at Open, so that a sealed text cannot be moved to another place. Sealing the same twice gives the same, so
// that applying an unchanged spec changes nothing; the price is that who reads sealed texts sees that one came back.
func (k Key) Seal(plain []byte, context string) []byte {
	// The nonce is drawn from what is sealed (as in RFC 8452's idea, by HMAC): another text or context has another one, so none
	// is ever used for two texts, and no node has to remember which were used.
	mac := hmac.New(sha256.New, k.derive("perigee seal nonce"))
	mac.Write(binary.BigEndian.AppendUint64(nil, uint64(len(context))))
	io.WriteString(mac, context)
	mac.Write(plain)
	sealed := make([]byte, 1+nonceSize, sealExtra+len(plain))
	sealed[0] = sealFormat
	copy(sealed[1:], mac.Sum(nil))
	return k.aead().Seal(sealed, sealed[1:], plain, []byte(context))
}

// Open gives back what was sealed by this key for this context.
func (k Key) Open(sealed []byte, context string) ([]byte, error) {
	if len(sealed) < sealExtra {
		return nil, errors.New("open sealed text: it is cut off")
	}
	if sealed[0] != sealFormat {
		return nil, fmt.Errorf("open sealed text: format %d is not known", sealed[0])
	}
	plain, err := k.aead().Open(nil, sealed[1:1+nonceSize], sealed[1+nonceSize:], []byte(context))
	if err != nil {
		return nil, errors.New("open sealed text: it is damaged, or sealed by another key or for another place")
	}
	return plain, nil
}

func (k Key) aead() cipher.AEAD {
	block, err := aes.NewCipher(k.derive("perigee seal text"))
	if err != nil {
		panic(err) // the size of the key is right
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic(err)
	}
	return aead
}

// Derive makes one key for one use of another part of the house.
func (k Key) Derive(use string) Key { return Key(k.derive("perigee derived " + use)) }

// derive makes one key for one use (RFC 5869).
func (k Key) derive(use string) []byte {
	derived, err := hkdf.Expand(sha256.New, k[:], use, len(k))
	if err != nil {
		panic(err) // the length is far below the limit
	}
	return derived
}

// Format implements fmt.Formatter: whatever is asked for, the key is not shown.
func (k Key) Format(f fmt.State, _ rune) { io.WriteString(f, "(secret)") }

// LogValue implements slog.LogValuer.
func (k Key) LogValue() slog.Value { return slog.StringValue("(secret)") }

// MarshalText refuses: a key is written by its bytes, on purpose, or not at all.
func (k Key) MarshalText() ([]byte, error) { return nil, errors.New("a key is not written as text") }
