package zone

import "testing"

func TestSerialsAreComparedOnTheirCircle(t *testing.T) {
	for _, test := range []struct {
		a, b uint32
		want bool
	}{
		{1, 0, true}, {0, 1, false}, {1, 1, false}, {44, 0, true}, {0, 1<<32 - 1, true}, {100, 1<<32 - 100, true},
		{1 << 31, 0, false}, {0, 1 << 31, false}, {1<<31 - 1, 0, true}, {1<<31 + 1, 0, false},
	} {
		if got := Newer(test.a, test.b); got != test.want {
			t.Errorf("%d after %d: %v", test.a, test.b, got)
		}
	}
}
