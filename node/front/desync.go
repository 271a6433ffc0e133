package front

import (
	"net/http"
	"sync/atomic"

	"github.com/perigee-net/perigee/edge/http1"
)

// reasons counts the HTTP/1 requests that were graded, by the reason for their grade.
type reasons [http1.Reasons]atomic.Uint64

func (c *reasons) counters() map[string]uint64 {
	var grades [http1.Grades]uint64
	n := func(r http1.Reason) uint64 {
		n := c[r].Load()
		grades[r.Grade()] += n
		return n
	}
	totals := map[string]uint64{
		"front_desync_get_head_zero_content_length_total":          n(http1.GetHeadZeroContentLength),
		"front_desync_non_compliant_version_total":                 n(http1.NonCompliantVersion),
		"front_desync_space_in_uri_total":                          n(http1.SpaceInUri),
		"front_desync_non_compliant_header_total":                  n(http1.NonCompliantHeader),
		"front_desync_ambiguous_uri_total":                         n(http1.AmbiguousUri),
		"front_desync_undefined_content_length_semantics_total":    n(http1.UndefinedContentLengthSemantics),
		"front_desync_undefined_transfer_encoding_semantics_total": n(http1.UndefinedTransferEncodingSemantics),
		"front_desync_both_te_cl_present_total":                    n(http1.BothTeClPresent),
		"front_desync_duplicate_content_length_total":              n(http1.DuplicateContentLength),
		"front_desync_empty_header_total":                          n(http1.EmptyHeader),
		"front_desync_suspicious_header_total":                     n(http1.SuspiciousHeader),
		"front_desync_bad_version_total":                           n(http1.BadVersion),
		"front_desync_bad_uri_total":                               n(http1.BadUri),
		"front_desync_bad_method_total":                            n(http1.BadMethod),
		"front_desync_bad_content_length_total":                    n(http1.BadContentLength),
		"front_desync_multiple_content_length_total":               n(http1.MultipleContentLength),
		"front_desync_bad_transfer_encoding_total":                 n(http1.BadTransferEncoding),
		"front_desync_multiple_transfer_encoding_chunked_total":    n(http1.MultipleTransferEncodingChunked),
		"front_desync_bad_header_total":                            n(http1.BadHeader),
	}
	totals["front_desync_acceptable_total"] = grades[http1.Acceptable]
	totals["front_desync_ambiguous_total"] = grades[http1.Ambiguous]
	totals["front_desync_severe_total"] = grades[http1.Severe]
	return totals
}

// unsayable says whether a request that came by HTTP/2 or 3 would be another one, or more than one, if it were passed on by HTTP/1:
// net/http checks less of it than of HTTP/1's (RFC 9113, 10.3).
func unsayable(r *http.Request) bool {
	lengths := r.Header["Content-Length"]
	return !http1.IsToken(r.Method) || r.Host != "" && !http1.IsHost(r.Host) ||
		len(lengths) > 1 || len(lengths) == 1 && !http1.IsLength(lengths[0])
}
