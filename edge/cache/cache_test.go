package cache

import (
	"net/http"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/perigee-net/perigee/cluster/spec"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// policy is a policy with CloudFront's defaults, changed as the test likes.
func policy(change ...func(*spec.CachePolicy)) *Policy {
	d := func(seconds int) *spec.Duration {
		v := spec.Duration(time.Duration(seconds) * time.Second)
		return &v
	}
	p := &spec.CachePolicy{MinTTL: d(0), DefaultTTL: d(86400), MaxTTL: d(31536000)}
	for _, c := range change {
		c(p)
	}
	return NewPolicy(p, 10*time.Second)
}

func ttls(least, fallback, most int) func(*spec.CachePolicy) {
	return func(p *spec.CachePolicy) {
		for at, seconds := range map[**spec.Duration]int{&p.MinTTL: least, &p.DefaultTTL: fallback, &p.MaxTTL: most} {
			v := spec.Duration(time.Duration(seconds) * time.Second)
			*at = &v
		}
	}
}

func keyed(headers, cookies, queries spec.KeyPart) func(*spec.CachePolicy) {
	return func(p *spec.CachePolicy) { p.Headers, p.Cookies, p.QueryStrings = headers, cookies, queries }
}

func only(items ...string) spec.KeyPart {
	return spec.KeyPart{Behavior: spec.KeyWhitelist, Items: items}
}

var all, none = spec.KeyPart{Behavior: spec.KeyAll}, spec.KeyPart{}

// header makes a header of "Name: value" lines.
func header(lines ...string) http.Header {
	h := http.Header{}
	for _, line := range lines {
		for i := range line {
			if line[i] == ':' {
				h.Add(line[:i], trim(line[i+1:]))
				break
			}
		}
	}
	return h
}
