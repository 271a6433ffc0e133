package cdn

import (
	"crypto/rand"
	"fmt"
	"net/http"
	"strconv"

	"github.com/perigee-net/perigee/edge/cache"
)

// byteranges is the body of a 206 of several parts (RFC 9110 §14.6): the heads that stand before each, and what ends it.
type byteranges struct {
	parts []cache.Part
	heads []string
	end   string
}

// newByteranges makes ready the answer that a has, of a body of that size and type, and its header. The boundary is
// random: it is in no body.
func newByteranges(h http.Header, a cache.Answer, kind string, size int64) *byteranges {
	boundary := rand.Text()
	b := &byteranges{parts: a.Parts, end: "\r\n--" + boundary + "--\r\n"}
	length := int64(len(b.end))
	if kind != "" {
		kind = "Content-Type: " + kind + "\r\n"
	}
	for _, p := range a.Parts {
		head := fmt.Sprintf("\r\n--%s\r\n%sContent-Range: bytes %d-%d/%d\r\n\r\n", boundary, kind, p.Start, p.Start+p.Length-1, size)
		b.heads = append(b.heads, head)
		length += int64(len(head)) + p.Length
	}
	h["Content-Type"] = []string{"multipart/byteranges; boundary=" + boundary}
	h["Content-Length"] = []string{strconv.FormatInt(length, 10)}
	return b
}
