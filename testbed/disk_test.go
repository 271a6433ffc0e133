package testbed

import (
	"strings"
	"testing"
)

// A node that has a disk for its cache is gone while something is purged. When it is back it serves the rest from its disk, and of what
// was purged nothing older, from its first answer on.
func TestARestartedNodeMakesThePurgesItMissedBeforeItServes(t *testing.T) {
	inWorld(t, func(t *testing.T, w *World) {
		w.steps(t, `
apply kept.yaml                             => revision=2
within 5s status all                        => agree revision=2 !behind
kill fra1
`)
		w.nodes["fra1"].cfg.CacheDiskBytes = 32 << 20
		w.steps(t, `
start fra1
within 10s status all                       => agree !behind
publish news "one"
publish more "one"
publish other "stays"
within 5s get london@fra1 http://kept.demo.perigee.test/news => 200 "one"
within 5s get london@fra1 http://kept.demo.perigee.test/more => 200 "one"
within 5s get london@fra1 http://kept.demo.perigee.test/other => 200 "stays"
get london@fra1 http://kept.demo.perigee.test/news => Hit "one"
kill fra1
start fra1
within 10s get london@fra1 http://kept.demo.perigee.test/news => 200 Hit "one"
after 5s
kill fra1
publish news "two"
publish more "two"
publish other "is another"
purge kept@icn1 /news                       => "done="
start fra1
within 10s get london@fra1 http://kept.demo.perigee.test/news => 200
`)
		for range 20 {
			if got := w.do(t, "get", "london@fra1", "http://kept.demo.perigee.test/news"); !strings.Contains(got, `"two"`) {
				t.Fatalf("it serves %s", got)
			}
		}
		w.steps(t, `
get london@fra1 http://kept.demo.perigee.test/other => 200 Hit "stays"
get london@fra1 http://kept.demo.perigee.test/more => 200 Hit "one"
kill fra1
cut fra1 icn1
cut fra1 iad1
start fra1
within 20s get london@fra1 http://kept.demo.perigee.test/more => 200 Hit "one"
purge kept@icn1 /more                       => "done="
for 5s get london@fra1 http://kept.demo.perigee.test/other => 200 Hit "stays"
heal fra1 icn1
heal fra1 iad1
within 30s get london@fra1 http://kept.demo.perigee.test/more => 200 "two"
get london@fra1 http://kept.demo.perigee.test/other => 200 "stays"
`)
	})
}
