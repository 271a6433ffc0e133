package testbed

import (
	"errors"
	"testing"
	"time"
)

func TestRegretIsSaid(t *testing.T) {
	const ms = time.Millisecond
	for _, c := range []struct {
		name string
		all  []led
		want string
	}{
		{"kept", []led{{"seoul", "icn1", 0, nil}, {"lagos", "fra1", 9 * ms, nil}, {"tokyo", "icn1", 5 * ms, nil}, {"paris", "fra1", 0, nil}},
			"kept: 3 of 4 within 5ms, mean 3.5ms, p95 9ms, max 9ms; lagos→fra1 +9ms"},
		{"missed", []led{{"lima", "gru1", 80 * ms, nil}, {"lagos", "fra1", 90 * ms, nil}, {"paris", "fra1", 0, nil}},
			"missed: 1 of 3 within 5ms, mean 56.7ms, p95 90ms, max 90ms; lagos→fra1 +90ms; lima→gru1 +80ms"},
		{"who is led nowhere is not near", []led{{"lima", "", 0, errors.New("no answer")}, {"paris", "fra1", 0, nil}, {"rome", "fra1", 0, nil}},
			"missed: 2 of 3 within 5ms, mean 0s, p95 0s, max 0s; lima: no answer"},
		{"nobody is led", []led{{"lima", "", 0, errors.New("no answer")}}, "missed: 0 of 1 within 5ms; lima: no answer"},
	} {
		if got := saidOfRegret(c.all, 5*ms, 0.75); got != c.want {
			t.Errorf("%s: got  %s\nwant %s", c.name, got, c.want)
		}
	}
}
