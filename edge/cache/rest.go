package cache

import (
	"net/http"
	"time"
)

// Rest is what has not come yet of the body of a response, to be asked for elsewhere.
type Rest struct {
	Start int64 // what has come
	Size  int64 // of all; −1: it is not known

	validator string
}

// RestOf is the whole body of a 200, of which nothing has come. Not ok: it has no strong validator, by which parts of two versions can
// be told apart (RFC 9110 §15.3.7.3).
func RestOf(response *http.Response) (r Rest, ok bool) {
	if response.StatusCode != http.StatusOK {
		return Rest{}, false
	}
	validator := strongValidator(response.Header, time.Now())
	return Rest{Size: response.ContentLength, validator: validator}, validator != ""
}

// Ended says whether a body that ends here is whole, as far as that is known.
func (r *Rest) Ended() bool { return r.Size < 0 || r.Start == r.Size }

// Conditions are those that ask for the rest, or for nothing that may be mistaken for it.
func (r *Rest) Conditions() http.Header {
	return rangeIf(r.validator, r.Start, "")
}

// Is says whether a response to the conditions is the rest. If so, the size is known from now on.
func (r *Rest) Is(response *http.Response) bool {
	part, size, ok := partOf(response.Header)
	switch {
	case response.StatusCode != http.StatusPartialContent, validatedBy(response.Header, r.validator) != r.validator, !ok:
		return false
	case part.Start != r.Start, part.Start+part.Length != size, r.Size >= 0 && size != r.Size:
		return false
	case response.ContentLength >= 0 && response.ContentLength != part.Length:
		return false
	}
	r.Size = size
	return true
}
