package identity

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/perigee-net/perigee/cluster/file"
)

// Names of the files in a data folder. They hold private keys and are readable by their owner alone.
const (
	nodeFile      = "node.json"
	authorityFile = "authority.json"
)

// maxFile bounds what is read of a file; a real one has about 3 KiB.
const maxFile = 64 << 10

// sealed is a file's content: the body as it was written, and its checksum.
type sealed struct {
	SHA256 []byte          `json:"sha256"`
	Body   json.RawMessage `json:"body"`
}

type nodeBody struct {
	Key         []byte `json:"key"`         // PKCS #8
	Certificate []byte `json:"certificate"` // DER
	CA          []byte `json:"ca"`          // DER
	GossipKey   []byte `json:"gossipKey"`
}

type authorityBody struct {
	Key       []byte `json:"key"`
	CA        []byte `json:"ca"`
	GossipKey []byte `json:"gossipKey"`
	Secret    []byte `json:"secret"`
}

// Save keeps the identity in a data folder, in place of the one that was there. It is on disk when Save returns.
func (n *Node) Save(dir string) error {
	key, err := x509.MarshalPKCS8PrivateKey(n.key)
	if err != nil {
		return fmt.Errorf("save node's key: %w", err)
	}
	return save(filepath.Join(dir, nodeFile), nodeBody{Key: key, Certificate: n.cert.Raw, CA: n.ca.Raw, GossipKey: n.gossipKey})
}

// LoadNode reads the identity kept in a data folder. A folder without one is fs.ErrNotExist.
func LoadNode(dir string) (*Node, error) {
	path := filepath.Join(dir, nodeFile)
	var body nodeBody
	if err := load(path, &body); err != nil {
		return nil, err
	}
	key, err := parseKey(body.Key)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	cert, err := x509.ParseCertificate(body.Certificate)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	ca, err := x509.ParseCertificate(body.CA)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	node, err := newNode(key, cert, ca, body.GossipKey)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return node, nil
}

// Save keeps the authority in a data folder. It is on disk when Save returns.
func (a *Authority) Save(dir string) error {
	key, err := x509.MarshalPKCS8PrivateKey(a.key)
	if err != nil {
		return fmt.Errorf("save authority's key: %w", err)
	}
	return save(filepath.Join(dir, authorityFile), authorityBody{Key: key, CA: a.cert.Raw, GossipKey: a.gossipKey, Secret: a.secret})
}

// LoadAuthority reads the authority kept in a data folder. A folder without one is fs.ErrNotExist: most nodes have none.
func LoadAuthority(dir string) (*Authority, error) {
	path := filepath.Join(dir, authorityFile)
	var body authorityBody
	if err := load(path, &body); err != nil {
		return nil, err
	}
	key, err := parseKey(body.Key)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	ca, err := x509.ParseCertificate(body.CA)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	authority, err := newAuthority(key, ca, body.GossipKey, body.Secret)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return authority, nil
}

func parseKey(pkcs8 []byte) (*ecdsa.PrivateKey, error) {
	key, err := x509.ParsePKCS8PrivateKey(pkcs8)
	if err != nil {
		return nil, err
	}
	k, ok := key.(*ecdsa.PrivateKey)
	if !ok {
		return nil, errors.New("key is not ECDSA")
	}
	return k, nil
}

func save(path string, body any) error {
	raw, err := json.Marshal(body)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	sum := sha256.Sum256(raw)
	data, err := json.Marshal(sealed{SHA256: sum[:], Body: raw})
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := file.ReplaceBytes(path, data); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

func load(path string, body any) error {
	info, err := os.Stat(path)
	if err != nil {
		return err // names the file itself
	}
	if info.Size() > maxFile {
		return fmt.Errorf("read %s: %d bytes: at most %d", path, info.Size(), maxFile)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var s sealed
	if err := json.Unmarshal(data, &s); err != nil {
		return fmt.Errorf("read %s: file is damaged: %w", path, err)
	}
	if sum := sha256.Sum256(s.Body); !bytes.Equal(sum[:], s.SHA256) {
		return fmt.Errorf("read %s: file is damaged: its checksum does not fit", path)
	}
	if err := json.Unmarshal(s.Body, body); err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	return nil
}
