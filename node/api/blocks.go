package api

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"hash/crc32"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
)

// Of a large document most often little changes. A client that has one asks what stands, not for its text but for the sums of its blocks, and sends
// what is in none of those; the leader puts the file together again before it looks at it, so that all that follows, faults, conflicts and all,
// is as if the file had come whole. Where what stands has changed meanwhile, or who answers is of a release that does not know any of this, the file goes whole.

const (
	// blockLines is after how many lines a block ends on average. Where it ends depends on nothing but its last line, so that
	// two texts have the same blocks where they are the same.
	blockLines = 64

	// maxBlock is how many bytes a block has at most.
	maxBlock = 16 << 10

	// sumSize is how many bytes a block's sum has: SHA-256, cut.
	sumSize = 16

	// askBlocks is from how many bytes on a document is worth it to ask for the blocks of the one that stands.
	askBlocks = 64 << 10

	// maxAsked is for how many documents of a request that is asked at most, all at once; further ones go whole.
	maxAsked = 8

	// maxDocumentParts is how many parts a document is sent in at most, maxParts how many a file may have; beyond it the document
	// goes whole, and a file is 400.
	maxDocumentParts = 1 << 10
	maxParts         = 1 << 14
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// SumOf is the sum of a file that comes in parts: CRC-32C (RFC 3720 section 12.1).
func SumOf(text string) uint32 { return crc32.Checksum([]byte(text), castagnoli) }

// blockEnd is how long the first block of a text is, which is not empty.
func blockEnd(text []byte) int {
	text = text[:min(len(text), maxBlock)]
	for at := 0; ; {
		i := bytes.IndexByte(text[at:], '\n')
		if i < 0 {
			return len(text)
		}
		line := text[at : at+i+1]
		if at += i + 1; crc32.Checksum(line, castagnoli)%blockLines == 0 {
			return at
		}
	}
}

// blocksOf are the lengths of a text's blocks, and their sums one after the other.
func blocksOf(text []byte) (lengths []int, sums []byte) {
	for len(text) > 0 {
		n := blockEnd(text)
		sum := sha256.Sum256(text[:n])
		lengths, sums = append(lengths, n), append(sums, sum[:sumSize]...)
		text = text[n:]
	}
	return lengths, sums
}

// largeDocument is one of a file, and how it is told from what stands.
type largeDocument struct {
	ref      Ref
	from, to int    // in the file
	parts    []Part // nil: it goes whole
}

// large are the documents of a file that are large enough, as far as their first two lines say whose they are: most are written so. It need not be right:
// what is taken for another document is compared with that one, and what comes out is what the file is in any case.
func large(file []byte) (all []*largeDocument) {
	const separator = "\n---\n"
	for from, end := 0, 0; end < len(file) && len(all) < maxAsked; from = end {
		if i := bytes.Index(file[from:], []byte(separator)); i >= 0 {
			end = from + i + len(separator)
		} else {
			end = len(file)
		}
		doc := bytes.TrimSuffix(file[from:end], []byte(separator[1:]))
		if len(doc) < askBlocks {
			continue
		}
		first, rest, _ := bytes.Cut(doc, []byte("\n"))
		second, _, _ := bytes.Cut(rest, []byte("\n"))
		kind, isKind := bytes.CutPrefix(first, []byte("kind: "))
		name, isName := bytes.CutPrefix(second, []byte("name: "))
		if isKind && isName && len(kind) <= maxName && len(name) <= maxName {
			all = append(all, &largeDocument{ref: Ref{string(kind), string(name)}, from: from, to: from + len(doc)})
		}
	}
	return all
}

// compare asks what stands in the document's place, and sums up the document while it waits.
func (c *Client) compare(ctx context.Context, d *largeDocument, text []byte) {
	var lengths []int
	var sums []byte
	var both sync.WaitGroup
	both.Go(func() { lengths, sums = blocksOf(text) })
	stands, err := c.Blocks(ctx, d.ref)
	if both.Wait(); err == nil && len(stands.Sums) == sumSize*len(stands.Lengths) {
		d.parts = partsOf(text, lengths, sums, stands)
	}
}

// Blocks is what a resource is made of, so that a change of it need not be sent whole.
func (c *Client) Blocks(ctx context.Context, r Ref) (b Blocks, err error) {
	return b, c.get(ctx, "/v1/blocks", url.Values{"kind": {r.Kind}, "name": {r.Name}}, &b)
}

// partsOf are the parts that a text is made of where blocks of it stand already; nil: it is sent whole, for too little is the same.
func partsOf(text []byte, lengths []int, sums []byte, stands Blocks) (parts []Part) {
	type place struct{ from, length int }
	places := make(map[[sumSize]byte]place, len(stands.Lengths))
	at, most := 0, len(text)/2
	for i, n := range stands.Lengths {
		sum := [sumSize]byte(stands.Sums[i*sumSize:])
		if _, again := places[sum]; !again {
			places[sum] = place{at, n}
		}
		at += n
	}
	sent := 0
	for i, n := range lengths {
		stood, ok := places[[sumSize]byte(sums[i*sumSize:])]
		ok = ok && stood.length == n
		if !ok {
			sent += n
		}
		var last Part
		if len(parts) > 0 {
			last = parts[len(parts)-1]
		}
		switch {
		case ok && last.Length > 0 && last.From+last.Length == stood.from:
			parts[len(parts)-1].Length += n
		case ok:
			parts = append(parts, Part{Kind: stands.Kind, Name: stands.Name, Revision: stands.Revision, From: stood.from, Length: n})
		case last.Text != "":
			parts[len(parts)-1].Text += string(text[:n])
		default:
			parts = append(parts, Part{Text: string(text[:n])})
		}
		if text = text[n:]; sent > most || len(parts) > maxDocumentParts {
			return nil
		}
	}
	return parts
}

// inParts is the request with what stands already left out of its files; false: nothing is.
func (c *Client) inParts(ctx context.Context, req ApplyRequest) (ApplyRequest, bool) {
	var asking sync.WaitGroup
	asked := 0
	docs := make([][]*largeDocument, len(req.Files))
	for i, f := range req.Files {
		if len(f.Parts) > 0 || len(f.Data) < askBlocks {
			continue
		}
		text := []byte(f.Data)
		for _, d := range large(text) {
			if asked++; asked <= maxAsked {
				docs[i] = append(docs[i], d)
				asking.Go(func() { c.compare(ctx, d, text[d.from:d.to]) })
			}
		}
	}
	asking.Wait()
	short := false
	req.Files = slices.Clone(req.Files)
	for i, f := range req.Files {
		var parts []Part
		done := 0
		for _, d := range docs[i] {
			if d.parts == nil {
				continue
			}
			if done < d.from {
				parts = append(parts, Part{Text: f.Data[done:d.from]})
			}
			parts, done = append(parts, d.parts...), d.to
		}
		if len(parts) == 0 {
			continue
		}
		if done < len(f.Data) {
			parts = append(parts, Part{Text: f.Data[done:]})
		}
		req.Files[i] = File{Name: f.Name, Parts: parts, Length: len(f.Data), Sum: SumOf(f.Data)}
		short = true
	}
	return req, short
}

// Whole is the file with its text, of parts that are of what text says; which is false where there is no such resource at that revision.
func (f File) Whole(text func(Part) ([]byte, bool)) (File, error) {
	if len(f.Parts) == 0 {
		return f, nil
	}
	bad := func(why string) (File, error) {
		return File{}, refuse(http.StatusBadRequest, "the file %.200q in parts: %s", f.Name, why)
	}
	switch {
	case f.Data != "":
		return bad("it has data, too")
	case len(f.Parts) > maxParts:
		return bad("it has too many")
	case f.Length < 0 || f.Length > MaxBody:
		return bad("its length is out of range")
	}
	var whole strings.Builder
	whole.Grow(f.Length)
	for _, p := range f.Parts {
		if p.Kind == "" && p.Name == "" {
			if p.From != 0 || p.Length != 0 || p.Revision != 0 {
				return bad("one is of no resource")
			}
			if len(p.Text) > f.Length-whole.Len() {
				return bad("they are longer than it")
			}
			whole.WriteString(p.Text)
			continue
		}
		if p.Text != "" {
			return bad("one is of a resource, and has a text")
		}
		stands, ok := text(p)
		if !ok {
			return File{}, refuse(http.StatusConflict, "%s %s is not at revision %d: send the file %.200q whole", p.Kind, p.Name, p.Revision, f.Name)
		}
		if p.From < 0 || p.Length < 0 || p.From > len(stands) || p.Length > len(stands)-p.From {
			return bad("one is not within its resource")
		}
		if p.Length > f.Length-whole.Len() {
			return bad("they are longer than it")
		}
		whole.Write(stands[p.From : p.From+p.Length])
	}
	if whole.Len() != f.Length || SumOf(whole.String()) != f.Sum {
		return bad("they do not make what its length and its sum say")
	}
	return File{Name: f.Name, Data: whole.String()}, nil
}

// tooNew says whether a request that has files in parts was refused because it has: nothing was done, and the files may do whole. Who is of an older release
// refuses a field that he does not know with 400.
func tooNew(err error) bool {
	var e *Error
	return errors.As(err, &e) && (e.Status == http.StatusBadRequest || e.Status == http.StatusConflict)
}

// blocks answers for one resource.
func blocks(c *call) (Blocks, error) {
	list, err := resources(c)
	if err != nil {
		return Blocks{}, err
	}
	if len(list.Resources) != 1 {
		return Blocks{}, refuse(http.StatusBadRequest, "kind and name: want those of one resource")
	}
	r := list.Resources[0]
	b := Blocks{Kind: r.Kind, Name: r.Name, Revision: r.Revision}
	b.Lengths, b.Sums = blocksOf([]byte(r.YAML))
	return b, nil
}
