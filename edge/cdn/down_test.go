package cdn

import (
	"errors"
	"net/http"
	"testing"
	"time"
)

func TestAnOriginIsDownForAWhileAfterItFailed(t *testing.T) {
	var d down
	now := time.Unix(1000000000, 0)
	for _, c := range []struct {
		name   string
		status int // it answers; 0: nothing, −1: it is not asked
		after  time.Duration
		down   bool
	}{
		{"of which nothing is known", -1, 0, false},
		{"that answers", 200, 0, false},
		{"that does not", 0, 0, true},
		{"that did not, a moment ago", -1, knownDown - time.Second, true},
		{"that did not, a while ago", -1, time.Second, false},
		{"that did not, again", 0, 0, true},
		{"that answers with an error of its own", 500, 0, false},
		{"whose gateway says that it does not", 504, 0, true},
		{"that is up again", 404, 0, false},
		{"that cannot serve", 503, 0, true},
	} {
		now = now.Add(c.after)
		switch c.status {
		case -1:
		case 0:
			d.note(nil, errors.New("no answer"), now)
		default:
			d.note(&http.Response{StatusCode: c.status}, nil, now)
		}
		if got := d.is(now); got != c.down {
			t.Errorf("an origin %s: down %v, want %v", c.name, got, c.down)
		}
	}
	if !d.probe(now) || d.probe(now) || d.probe(now.Add(probeEvery-1)) || !d.probe(now.Add(probeEvery)) {
		t.Error("it is probed more or less than once a second")
	}
}
