package store

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"os"
	"sync"
	"time"

	"github.com/perigee-net/perigee/cluster/file"
)

const (
	// voteFile holds Raft's term and vote, in the data folder.
	voteFile = "raft.vote"

	// voteSlot is how far the file's two copies are apart: no disk writes both at once.
	voteSlot = 4096

	// voteRecord is what is written of a copy. It lies within one sector of the disk.
	voteRecord = 512

	// maxVote bounds the address voted for, in bytes: a host name of 255 and a port.
	maxVote = 300

	// voteRetry is how long after a write that failed the next is tried, where Raft cannot go on without it.
	voteRetry = time.Second
)

// voteMagic begins a copy, and names its format.
var voteMagic = [8]byte{'p', 'g', 'v', 'o', 't', 'e', 0, 1}

// The names by which Raft knows what it keeps here.
var (
	keyTerm     = []byte("CurrentTerm")
	keyVoteTerm = []byte("LastVoteTerm")
	keyVote     = []byte("LastVoteCand")
)

// promise is what a voter must never forget.
type promise struct {
	number   uint64 // grows with each write
	term     uint64
	voteTerm uint64
	vote     []byte // whom, by address; nil: nobody yet
}

// votes keeps Raft's term and vote (raft.StableStore) in a file that is never longer or shorter than it was made: the two
// copies in it are overwritten, so a full disk cannot keep a node from taking a new term, at which Raft would panic. (A
// file system that copies on write gives no such promise; there the write is tried until it works.)
//
// Each write makes one copy durable, then the other. So a write that was cut off anywhere leaves one whole copy, and
// a copy that is damaged later is not missed.
type votes struct {
	mu     sync.Mutex // Raft takes heartbeats beside its main loop
	now    promise
	voting uint64 // the term of a vote whose candidate comes next; Raft tells the two one after the other

	write  func(data []byte, at int64) error
	sync   func() error
	close  func() error
	failed func(error)     // told of a write that failed and is tried again; nil when one works
	ending <-chan struct{} // closed when nothing that is promised now will reach anybody
}

// makeVotes makes the file of a node that has promised nothing.
func makeVotes(path string) error {
	fresh := promise{}.encode()
	if err := file.ReplaceBytes(path, append(bytes.Clone(fresh), fresh...)); err != nil {
		return fmt.Errorf("make %s: %w", path, err)
	}
	return nil
}

// openVotes opens the file. One that is damaged in both copies is refused by its name.
func openVotes(path string, noSync bool) (*votes, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	now, whole, err := readVotes(f)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	v := &votes{now: now, sync: f.Sync, close: f.Close, failed: func(error) {}, write: func(data []byte, at int64) error {
		_, err := f.WriteAt(data, at)
		return err
	}}
	if noSync {
		v.sync = func() error { return nil }
	}
	if !whole {
		if err := v.store(now); err != nil {
			f.Close()
			return nil, fmt.Errorf("mend %s: %w", path, err)
		}
	}
	return v, nil
}

// readVotes reads the newer of the copies that are whole, and says whether both are and agree.
func readVotes(f *os.File) (now promise, whole bool, err error) {
	data := make([]byte, 2*voteSlot+1)
	n, err := f.ReadAt(data, 0)
	if n != 2*voteSlot {
		return promise{}, false, fmt.Errorf("%w: it has %d bytes or more, not %d (%v)", errDamaged, n, 2*voteSlot, err)
	}
	return decodeVotes(data[:n])
}

func decodeVotes(data []byte) (now promise, whole bool, err error) {
	a, errA := decodePromise(data[:voteSlot])
	b, errB := decodePromise(data[voteSlot : 2*voteSlot])
	switch {
	case errA != nil && errB != nil:
		return promise{}, false, errA
	case errA != nil:
		return b, false, nil
	case errB != nil, a.number > b.number:
		return a, false, nil
	}
	return b, a.number == b.number, nil
}

// encode is a copy as it is on disk: magic, number, term, term of the vote (8 bytes each, big endian), length of the
// candidate (2; 0 is none, else one more than it has), the candidate, zeros, and at the record's end its CRC-32C.
func (p promise) encode() []byte {
	b := make([]byte, 0, voteSlot)
	b = append(b, voteMagic[:]...)
	for _, n := range []uint64{p.number, p.term, p.voteTerm} {
		b = binary.BigEndian.AppendUint64(b, n)
	}
	if p.vote != nil {
		b = binary.BigEndian.AppendUint16(b, uint16(len(p.vote))+1)
		b = append(b, p.vote...)
	}
	b = b[:voteRecord-4]
	b = binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
	return b[:voteSlot]
}

func decodePromise(b []byte) (promise, error) {
	b = b[:voteRecord]
	content, sum := b[:voteRecord-4], binary.BigEndian.Uint32(b[voteRecord-4:])
	if !bytes.HasPrefix(b, voteMagic[:]) || crc32.Checksum(content, castagnoli) != sum {
		return promise{}, errDamaged
	}
	p := promise{
		number:   binary.BigEndian.Uint64(b[8:]),
		term:     binary.BigEndian.Uint64(b[16:]),
		voteTerm: binary.BigEndian.Uint64(b[24:]),
	}
	if size := int(binary.BigEndian.Uint16(b[32:])); size > maxVote+1 {
		return promise{}, errDamaged
	} else if size > 0 {
		p.vote = append([]byte{}, b[34:34+size-1]...)
	}
	return p, nil
}

// store makes a promise durable. After an error the file holds it, or the one before. The caller has the lock.
func (v *votes) store(p promise) error {
	v.now.number++ // also if it fails: the half of it that may be there must not win over what comes next
	p.number = v.now.number
	record := p.encode()[:voteRecord]
	for _, at := range []int64{0, voteSlot} {
		if err := v.write(record, at); err != nil {
			return fmt.Errorf("write %s: %w", voteFile, err)
		}
		if err := v.sync(); err != nil {
			return fmt.Errorf("flush %s: %w", voteFile, err)
		}
	}
	v.now = p
	return nil
}

// SetUint64 implements raft.StableStore. Raft panics where it cannot keep its term, which would take the whole process with it.
// So that is tried until it works; meanwhile this node takes no part in Raft, and serves on.
func (v *votes) SetUint64(key []byte, value uint64) error {
	switch {
	case bytes.Equal(key, keyVoteTerm):
		v.mu.Lock()
		v.voting = value // durable together with the candidate, who is told next
		v.mu.Unlock()
		return nil
	case !bytes.Equal(key, keyTerm):
		return fmt.Errorf("keep %q: it is not known", key)
	}
	for {
		err := v.keepTerm(value)
		v.failed(err)
		if err == nil {
			return nil
		}
		select {
		case <-time.After(voteRetry):
		case <-v.ending:
			return nil // the connections are closed: what is done with the term will reach nobody
		}
	}
}

// keepTerm keeps a term that is newer than the one that is kept; a term never goes back.
func (v *votes) keepTerm(term uint64) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if term <= v.now.term {
		return nil
	}
	next := v.now
	next.term = term
	return v.store(next)
}

// Set implements raft.StableStore.
func (v *votes) Set(key, value []byte) error {
	if !bytes.Equal(key, keyVote) {
		return fmt.Errorf("keep %q: it is not known", key)
	}
	if len(value) > maxVote {
		return fmt.Errorf("keep a vote of %d bytes: at most %d", len(value), maxVote)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	next := v.now
	next.voteTerm, next.vote = v.voting, append([]byte{}, value...)
	return v.store(next)
}

// Get implements raft.StableStore: nil if there is none.
func (v *votes) Get(key []byte) ([]byte, error) {
	if !bytes.Equal(key, keyVote) {
		return nil, fmt.Errorf("read %q: it is not known", key)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	return bytes.Clone(v.now.vote), nil
}

// GetUint64 implements raft.StableStore: 0 if there is none.
func (v *votes) GetUint64(key []byte) (uint64, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	switch {
	case bytes.Equal(key, keyTerm):
		return v.now.term, nil
	case bytes.Equal(key, keyVoteTerm):
		return v.now.voteTerm, nil
	}
	return 0, fmt.Errorf("read %q: it is not known", key)
}
