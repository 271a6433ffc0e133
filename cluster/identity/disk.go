package identity

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/perigee-net/perigee/cluster/file"
)

// nodeFile is the file in a data folder. It holds private keys and is readable by its owner alone.
const nodeFile = "node.json"

// maxFile bounds what is read of the file; a real one has about 3 KiB.
const maxFile = 64 << 10

// enclosed is a file's content: the body as it was written, and its checksum.
type enclosed struct {
	SHA256 []byte          `json:"sha256"`
	Body   json.RawMessage `json:"body"`
}

type nodeBody struct {
	Key          []byte   `json:"key"`         // PKCS #8
	Certificate  []byte   `json:"certificate"` // DER
	Authorities  [][]byte `json:"authorities"` // DER
	ClusterKey   []byte   `json:"clusterKey"`
	AuthorityKey []byte   `json:"authorityKey,omitempty"`
}

// Save keeps the identity in a data folder, in place of the one that was there. It is on disk when Save returns.
func (n *Node) Save(dir string) error {
	path := filepath.Join(dir, nodeFile)
	key, err := x509.MarshalPKCS8PrivateKey(n.key)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	body := nodeBody{Key: key, Certificate: n.cert.Raw, ClusterKey: n.keys.Cluster[:]}
	for _, ca := range n.authorities {
		body.Authorities = append(body.Authorities, ca.Raw)
	}
	if n.keys.Authority != nil {
		body.AuthorityKey = n.keys.Authority[:]
	}
	raw, err := json.Marshal(body)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	sum := sha256.Sum256(raw)
	data, err := json.Marshal(enclosed{SHA256: sum[:], Body: raw})
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := file.ReplaceBytes(path, data); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// LoadNode reads the identity kept in a data folder. A folder without one is fs.ErrNotExist.
func LoadNode(dir string) (*Node, error) {
	path := filepath.Join(dir, nodeFile)
	data, err := read(path)
	if err != nil {
		return nil, err // names the file itself
	}
	node, err := decodeNode(data)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return node, nil
}

func decodeNode(data []byte) (*Node, error) {
	var whole enclosed
	if err := json.Unmarshal(data, &whole); err != nil {
		return nil, fmt.Errorf("file is damaged: %w", err)
	}
	if sum := sha256.Sum256(whole.Body); !bytes.Equal(sum[:], whole.SHA256) {
		return nil, fmt.Errorf("file is damaged: its checksum does not fit")
	}
	var body nodeBody
	if err := json.Unmarshal(whole.Body, &body); err != nil {
		return nil, err
	}
	key, err := readPrivateKey(body.Key)
	if err != nil {
		return nil, err
	}
	keys, err := readKeys(body.ClusterKey, body.AuthorityKey)
	if err != nil {
		return nil, err
	}
	return newNode(key, body.Certificate, body.Authorities, keys)
}

// readKeys takes keys as they are written: the authority key is empty where a node has none.
func readKeys(cluster, authority []byte) (keys Keys, err error) {
	if keys.Cluster, err = ReadKey(cluster); err != nil {
		return Keys{}, fmt.Errorf("cluster key: %w", err)
	}
	if len(authority) > 0 {
		k, err := ReadKey(authority)
		if err != nil {
			return Keys{}, fmt.Errorf("authority key: %w", err)
		}
		keys.Authority = &k
	}
	return keys, nil
}

func read(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Size() > maxFile {
		return nil, fmt.Errorf("read %s: %d bytes: at most %d", path, info.Size(), maxFile)
	}
	return os.ReadFile(path)
}
