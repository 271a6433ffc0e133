package spec

import (
	"encoding/json"
	"errors"
	"math"
	"strconv"
	"time"
)

// Duration is written as AWS writes it, a number of seconds (`interval: 30`), or with a unit in Go's
// form (`interval: 500ms`).
type Duration time.Duration

// Std is the same length of time as the standard library's type.
func (d Duration) Std() time.Duration { return time.Duration(d) }

// String is whole seconds (300s), or else Go's form (1.5s, 500ms).
func (d Duration) String() string {
	if seconds, whole := d.seconds(); whole {
		return strconv.FormatInt(seconds, 10) + "s"
	}
	return d.Std().String()
}

func (d Duration) seconds() (n int64, whole bool) {
	return int64(d.Std() / time.Second), d.Std()%time.Second == 0
}

// MarshalJSON is a number of seconds, or else text in Go's form.
func (d Duration) MarshalJSON() ([]byte, error) {
	if seconds, whole := d.seconds(); whole {
		return strconv.AppendInt(nil, seconds, 10), nil
	}
	return json.Marshal(d.String())
}

// UnmarshalJSON reads either form.
func (d *Duration) UnmarshalJSON(data []byte) error {
	text := string(data)
	if len(data) > 0 && data[0] == '"' {
		if err := json.Unmarshal(data, &text); err != nil {
			return err
		}
	}
	parsed, err := parseDuration(text)
	*d = parsed
	return err
}

var errNotDuration = errors.New("must be a number of seconds, or a length of time like 500ms")

func parseDuration(text string) (Duration, error) {
	if seconds, err := strconv.ParseInt(text, 10, 64); err == nil {
		if seconds > math.MaxInt64/int64(time.Second) || seconds < math.MinInt64/int64(time.Second) {
			return 0, errNotDuration
		}
		return Duration(seconds) * Duration(time.Second), nil
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		return 0, errNotDuration
	}
	return Duration(d), nil
}
