package backbone

import (
	"fmt"
	"testing"
	"time"
)

func TestManyBytesAreExpectedByWhatTheLastFlowsCarried(t *testing.T) {
	const few, many = 1000, bulkBytes
	for _, tt := range []struct {
		last []uint64
		want bool
	}{
		{nil, false},
		{[]uint64{many}, false},
		{[]uint64{many, many}, false},
		{[]uint64{many, many, many}, true},
		{[]uint64{many, many - 1, many - 1}, false},
		{[]uint64{few, many, many}, true},
		{[]uint64{few, few, many}, false},
		{[]uint64{many, many, few, few}, false},
		{[]uint64{few, many, many, many, many}, true},
		{[]uint64{many, many, many, few, few, few, few, few, few, few, few}, false},
		{[]uint64{few, few, few, few, few, few, few, few, many, many, many, many, many}, true},
	} {
		s := sizes{of: map[asked]*recent{}}
		for _, n := range tt.last {
			s.add(asked{"flow", "targetGroup/db"}, n)
		}
		if got := s.many(asked{"flow", "targetGroup/db"}); got != tt.want {
			t.Errorf("after %v: %v", tt.last, got)
		}
		if s.many(asked{"flow", "targetGroup/web"}) {
			t.Errorf("after %v of another resource", tt.last)
		}
	}
	s := sizes{of: map[asked]*recent{}}
	for i := range 3 * maxRecent {
		s.add(asked{"flow", fmt.Sprint(i)}, many)
	}
	if len(s.of) != maxRecent {
		t.Errorf("%d resources are remembered, at most %d", len(s.of), maxRecent)
	}
}

func TestAFlowGoesTheWayThatIsExpectedToBeFaster(t *testing.T) {
	for name, tt := range map[string]struct {
		prospect
		want bool
	}{
		"with BBR":                     {prospect{bbr: true}, true},
		"without BBR":                  {prospect{}, false},
		"to a neighbour":               {prospect{rtt: time.Millisecond}, true},
		"TCP was faster":               {prospect{bbr: true, tcp: 300e6, quic: 100e6}, true},
		"TCP was faster without BBR":   {prospect{tcp: 300e6, quic: 100e6}, false},
		"QUIC was hardly faster":       {prospect{bbr: true, tcp: 100e6, quic: 110e6}, true},
		"QUIC was faster":              {prospect{bbr: true, tcp: 20e6, quic: 100e6}, false},
		"QUIC was fast, TCP unknown":   {prospect{bbr: true, quic: 1e9}, true},
		"one in many tries the other":  {prospect{bbr: true, turn: oneInMany - 1}, false},
		"and the other way round":      {prospect{bbr: true, tcp: 20e6, quic: 100e6, turn: 2*oneInMany - 1}, true},
		"but TCP never without BBR":    {prospect{turn: oneInMany - 1}, false},
		"and QUIC not to a neighbour":  {prospect{rtt: time.Millisecond, turn: oneInMany - 1}, true},
		"the one after that as before": {prospect{bbr: true, turn: oneInMany}, true},
	} {
		if tt.rtt == 0 {
			tt.rtt = 80 * time.Millisecond
		}
		if got := tt.byTCP(); got != tt.want {
			t.Errorf("%s: by TCP: %v", name, got)
		}
	}
}

func TestRatesAreOfLate(t *testing.T) {
	var r rates
	now := time.Now()
	add := func(all ...float64) {
		for _, rate := range all {
			r.add(rate, now)
		}
	}
	check := func(want float64) {
		t.Helper()
		if got := r.of(now); got != want {
			t.Errorf("the rate is %v, want %v", got, want)
		}
	}
	check(0)
	add(1, 100)
	check(0) // too few
	add(50)
	check(50)
	now = now.Add(rateMemory)
	check(50)
	add(7)
	now = now.Add(time.Second)
	check(0)
	add(8, 9)
	check(8)
	add(20, 20, 20, 20, 20, 20, 20, 20)
	check(20)
}
