package spec

import (
	"encoding/json"
	"math"
	"testing"
	"time"
)

func TestDurationsAreSecondsOrGosForm(t *testing.T) {
	for _, c := range []struct {
		written string
		want    time.Duration
		json    string
		text    string
	}{
		{`30`, 30 * time.Second, `30`, "30s"},
		{`"30"`, 30 * time.Second, `30`, "30s"},
		{`"1m30s"`, 90 * time.Second, `90`, "90s"},
		{`"500ms"`, 500 * time.Millisecond, `"500ms"`, "500ms"},
		{`"1.5s"`, 1500 * time.Millisecond, `"1.5s"`, "1.5s"},
		{`0`, 0, `0`, "0s"},
		{`-1`, -time.Second, `-1`, "-1s"},
		{`2147483647`, math.MaxInt32 * time.Second, `2147483647`, "2147483647s"},
	} {
		var d Duration
		if err := json.Unmarshal([]byte(c.written), &d); err != nil || d.Std() != c.want {
			t.Errorf("%s: got %v, %v", c.written, d.Std(), err)
		}
		back, err := json.Marshal(d)
		if err != nil || string(back) != c.json || d.String() != c.text {
			t.Errorf("%s: written back as %s and %s, %v", c.written, back, d, err)
		}
	}
	for _, written := range []string{`1.5`, `"soon"`, `""`, `true`, `null`, `[]`, `9223372037`, `-9223372037`, `"1"2`} {
		d := Duration(7)
		if err := json.Unmarshal([]byte(written), &d); err == nil {
			t.Errorf("%s was read as %s", written, d)
		}
	}
}
