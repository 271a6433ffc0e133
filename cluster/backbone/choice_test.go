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
		"with BBR":                     {prospect{bbr: true}, false},
		"without BBR":                  {prospect{}, false},
		"to a neighbour":               {prospect{rtt: time.Millisecond}, true},
		"TCP was faster":               {prospect{bbr: true, tcp: 300e6, quic: 100e6}, true},
		"TCP was faster without BBR":   {prospect{tcp: 300e6, quic: 100e6}, false},
		"TCP was hardly faster":        {prospect{bbr: true, tcp: 110e6, quic: 100e6}, false},
		"QUIC was faster":              {prospect{bbr: true, tcp: 20e6, quic: 100e6}, false},
		"TCP was fast, QUIC unknown":   {prospect{bbr: true, tcp: 1e9}, false},
		"one in many tries the other":  {prospect{bbr: true, turn: oneInMany - 1}, true},
		"and the other way round":      {prospect{bbr: true, tcp: 300e6, quic: 100e6, turn: 2*oneInMany - 1}, false},
		"but TCP never without BBR":    {prospect{turn: oneInMany - 1}, false},
		"and QUIC not to a neighbour":  {prospect{rtt: time.Millisecond, turn: oneInMany - 1}, true},
		"the one after that as before": {prospect{bbr: true, turn: oneInMany}, false},
	} {
		if tt.rtt == 0 {
			tt.rtt = 80 * time.Millisecond
		}
		if got := tt.byTCP(); got != tt.want {
			t.Errorf("%s: by TCP: %v", name, got)
		}
	}
}

// A flow is moved under way where what it saves is more than what TCP takes to begin.
func TestAFlowIsMovedWhereThatIsWorthIt(t *testing.T) {
	at := func(mbits float64, bytes uint64) time.Duration {
		return time.Duration(float64(bytes) * 8 / (mbits * 1e6) * float64(time.Second))
	}
	for name, tt := range map[string]struct {
		prospect
		bytes uint64
		mbits float64
		want  bool
	}{
		"a neighbour, for what it costs":          {prospect{rtt: ms}, 4 << 20, 1000, true},
		"no BBR":                                  {prospect{rtt: 150 * ms}, 4 << 20, 1, false},
		"as fast as the path was":                 {prospect{rtt: 150 * ms, bbr: true, most: 264e6}, 4 << 20, 250, false},
		"… and for long":                          {prospect{rtt: 150 * ms, bbr: true, most: 264e6, tcp: 260e6}, 4 << 30, 264, false},
		"stuck at its beginning":                  {prospect{rtt: 150 * ms, bbr: true, most: 264e6}, 4 << 20, 15, true},
		"stuck, and nothing is known":             {prospect{rtt: 150 * ms, bbr: true}, 4 << 20, 10, true},
		"a third of what it could be, too soon":   {prospect{rtt: 150 * ms, bbr: true, most: 264e6}, 8 << 20, 80, false},
		"… and later":                             {prospect{rtt: 150 * ms, bbr: true, most: 264e6}, 32 << 20, 80, true},
		"TCP was no faster":                       {prospect{rtt: 150 * ms, bbr: true, most: 264e6, tcp: 15e6}, 32 << 20, 15, false},
		"TCP was, once what is left is worth it":  {prospect{rtt: 150 * ms, bbr: true, most: 335e6, tcp: 900e6}, 256 << 20, 335, true},
		"one of many flows":                       {prospect{rtt: 150 * ms, bbr: true, most: 264e6, now: 250e6}, 32 << 20, 5, false},
		"one of many, of a path that is narrower": {prospect{rtt: 150 * ms, bbr: true, most: 264e6, now: 20e6}, 32 << 20, 5, true},
		"in no time":                              {prospect{rtt: 150 * ms, bbr: true}, 4 << 20, 1e12, false},
		"by a short way sooner":                   {prospect{rtt: 20 * ms, bbr: true, most: 264e6}, 8 << 20, 80, true},
		"much on a path that is a full window":    {prospect{rtt: 150 * ms, bbr: true, most: 335e6}, 128 << 20, 335, true},
	} {
		if got := tt.shifts(tt.bytes, at(tt.mbits, tt.bytes)); got != tt.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestAPaceIsThatOfTheFasterQuarter(t *testing.T) {
	var p pace
	begun := time.Now()
	at := func(carried uint64, d time.Duration, bytes uint64, took time.Duration) {
		t.Helper()
		if b, got := p.reached(carried, begun.Add(d)); b != bytes || got != took {
			t.Errorf("%d after %v: %d in %v, want %d in %v", carried, d, b, got, bytes, took)
		}
	}
	const mb = 1 << 20
	at(2*mb, 0, 0, 0)
	at(5*mb/2, 100*ms, 0, 0)
	at(3*mb, 200*ms, 0, 0)
	at(7*mb/2, 250*ms, 0, 0)
	at(4*mb, 300*ms, 4*mb, 400*ms) // the last quarter took 100 ms
	at(5*mb, 400*ms, 0, 0)
	at(6*mb, 500*ms, 0, 0)
	at(7*mb, 5*time.Second, 0, 0) // it stalls
	at(8*mb+1000, 6*time.Second, 8*mb, 800*ms)
	at(12*mb, 7*time.Second, 0, 0)
	at(16*mb, 8*time.Second, 16*mb, 4*time.Second)
	at(40*mb, 9*time.Second, 0, 0) // more at once than there is to be looked at
	at(40*mb, 9*time.Second+ms, 32*mb, 4*ms)
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
