package secondary

import (
	"bytes"
	"crypto/sha256"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestACopyOnDiskIsTheSameAfterwards(t *testing.T) {
	d := Disk{Dir: filepath.Join(t.TempDir(), "zones")}
	if z, _, err := d.Load("example.com"); z != nil || err != nil {
		t.Fatalf("where there is none: %v, %v", z, err)
	}
	at := time.Now().Add(-time.Hour).Truncate(time.Second)
	for _, lines := range []string{"SOA7\nNS\n" + content, "SOA8\nNS"} {
		z := zoneOf(t, lines)
		if err := d.Save("example.com", z, at); err != nil {
			t.Fatal(err)
		}
		again, confirmed, err := d.Load("example.com")
		if err != nil || !confirmed.Equal(at) {
			t.Fatalf("confirmed %v, %v", confirmed, err)
		}
		if got, want := shown(t, again), shown(t, z); got != want {
			t.Errorf("got\n%swant\n%s", got, want)
		}
	}
	later := at.Add(time.Minute)
	if err := d.Confirm("example.com", later); err != nil {
		t.Fatal(err)
	}
	if _, confirmed, err := d.Load("example.com"); err != nil || !confirmed.Equal(later) {
		t.Errorf("confirmed %v, %v", confirmed, err)
	}
	long := strings.Repeat(strings.Repeat("a", 61)+".", 4) + "example" // longer than a file's name may be
	if err := d.Save(long, zoneOf(t, "SOA7\nNS"), at); err != nil {
		t.Error(err)
	}
	if err := d.Keep(map[string]bool{ID("example.com"): true}); err != nil {
		t.Error(err)
	}
	if z, _, err := d.Load(long); z != nil || err != nil {
		t.Errorf("of what is not kept: %v, %v", z, err)
	}
	if z, _, err := d.Load("example.com"); z == nil || err != nil {
		t.Errorf("of what is kept: %v, %v", z, err)
	}
	for range 2 {
		if err := d.Remove("example.com"); err != nil {
			t.Error(err)
		}
	}
	if z, _, err := d.Load("example.com"); z != nil || err != nil {
		t.Errorf("removed: %v, %v", z, err)
	}
}

func TestADamagedCopyOnDiskIsRefusedByName(t *testing.T) {
	d := Disk{Dir: t.TempDir()}
	good := encoded(zoneOf(t, "SOA7\nNS\n"+content))
	path := d.path("example.com")
	refused := func(what string, data []byte, want string) {
		t.Helper()
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		z, _, err := d.Load("example.com")
		if err == nil || !strings.HasPrefix(err.Error(), path+": ") || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, %v", what, z, err)
		}
	}
	for at := range good {
		bad := bytes.Clone(good)
		bad[at] ^= 1
		refused("a bit of another kind", bad, "damaged")
		if at%16 == 0 {
			refused("cut", good[:at], "damaged")
		}
	}
	refused("longer", append(bytes.Clone(good), 0), "damaged")
	if err := d.Save("example.net", zoneOf(t, "SOA7\nNS"), time.Now()); err != nil {
		t.Fatal(err)
	}
	other, err := os.ReadFile(d.path("example.net"))
	if err != nil {
		t.Fatal(err)
	}
	refused("another zone's", other, "of another zone")
}

// FuzzDecode holds that a file of any bytes, with the right sum, makes an error or a zone.
func FuzzDecode(f *testing.F) {
	f.Add(encoded(zoneOf(f, "SOA7\nNS\n"+content)))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < sha256.Size {
			return
		}
		b = b[:len(b)-sha256.Size]
		sum := sha256.Sum256(b)
		z, err := decode("example.com", append(bytes.Clone(b), sum[:]...))
		if err != nil {
			return
		}
		if again, err := decode("example.com", encoded(z)); err != nil || !slices.EqualFunc(rows(z), rows(again), equal) {
			t.Fatalf("it is another zone afterwards: %v", err)
		}
	})
}
