package cache

import (
	"testing"
	"time"

	"github.com/dunglas/httpsfv"
)

func TestCacheStatusReadsAsRFC9211Says(t *testing.T) {
	for _, c := range []struct {
		status Status
		want   string
	}{
		{Status{Hit: true, HasTTL: true, TTL: 90 * time.Second}, "perigee; hit; ttl=90"},
		{Status{Hit: true, HasTTL: true, TTL: -1500 * time.Millisecond, Detail: "stale-if-error"}, "perigee; hit; ttl=-1; detail=stale-if-error"},
		{Status{Forward: URIMiss, Code: 200, Stored: true, Collapsed: true, HasTTL: true}, "perigee; fwd=uri-miss; fwd-status=200; stored; collapsed; ttl=0"},
		{Status{Forward: VaryMiss, Code: 404, Detail: "no-store"}, "perigee; fwd=vary-miss; fwd-status=404; detail=no-store"},
		{Status{Forward: StaleObject}, "perigee; fwd=stale"},
		{Status{Forward: ByRequest}, "perigee; fwd=request"},
		{Status{Forward: ByMethod}, "perigee; fwd=method"},
		{Status{Forward: ByPolicy}, "perigee; fwd=bypass"},
	} {
		got := string(c.status.Append(nil))
		if got != c.want {
			t.Errorf("got %q, want %q", got, c.want)
		}
		list, err := httpsfv.UnmarshalList([]string{"upstream; hit", got})
		if err != nil || len(list) != 2 {
			t.Fatalf("%q is no list of structured fields: %v", got, err)
		}
		item := list[1].(httpsfv.Item)
		if hit, _ := item.Params.Get("hit"); item.Value != httpsfv.Token("perigee") || (hit == true) != c.status.Hit {
			t.Errorf("%q reads as %v", got, item)
		}
		for name, kind := range map[string]any{"fwd": httpsfv.Token(""), "detail": httpsfv.Token(""), "ttl": int64(0), "fwd-status": int64(0)} {
			value, has := item.Params.Get(name)
			_, token := value.(httpsfv.Token)
			_, integer := value.(int64)
			if _, wantToken := kind.(httpsfv.Token); has && (wantToken && !token || !wantToken && !integer) {
				t.Errorf("%q: %s is %T", got, name, value)
			}
		}
	}
}
