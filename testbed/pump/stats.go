package pump

import (
	"math/bits"
	"time"
)

// Stats is what a link has carried since it was added.
type Stats struct {
	AB, BA Direction
}

// Direction is what one direction of a link has carried.
type Direction struct {
	Packets, Bytes uint64        // delivered; bytes with IP headers
	Lost           uint64        // packets lost by the path's Loss
	Queue          uint64        // packets dropped since the path's queue was full
	Down           uint64        // packets dropped since the direction is silent
	Full           uint64        // packets dropped since the pump kept MaxPackets
	Refused        uint64        // packets the device at the far end did not take: it is down, or gone
	Late           uint64        // packets delivered more than TooLate after their time
	P99            time.Duration // 99 of 100 packets were delivered no later than this after their time
	UnderWay       int           // packets kept now
	Silent         bool          // it was told to be
	Gone           bool          // the device at its near end has vanished: nothing comes any more
}

// TooLate is how late a packet is delivered that counts as late.
const TooLate = 500 * time.Microsecond

// lateness counts how late packets were delivered: an eighth of an octave a bucket, from 256 ns to 4 s.
type lateness [(32-8)*8 + 1]uint64

// bucket is the last for which late is at least its floor.
func bucket(late time.Duration) int {
	if late < 256 {
		return 0
	}
	octave := bits.Len64(uint64(late)) - 1
	return min(len(lateness{})-1, (octave-8)*8+int(late>>(octave-3))&7+1)
}

// ceiling is the least duration above a bucket.
func ceiling(b int) time.Duration {
	if b == 0 {
		return 256
	}
	octave, part := (b-1)/8+8, (b-1)%8
	return time.Duration(1)<<octave + time.Duration(part+1)<<(octave-3)
}

func (l *lateness) add(late time.Duration) { l[bucket(late)]++ }

// p99 is a bound that 99 of 100 packets kept, at most an eighth too high; 0 where there were none.
func (l *lateness) p99() time.Duration {
	var all, sum uint64
	for _, n := range l {
		all += n
	}
	if all == 0 {
		return 0
	}
	for b, n := range l {
		if sum += n; sum*100 >= all*99 {
			return ceiling(b)
		}
	}
	return ceiling(len(l) - 1)
}

// Urgency is how the system schedules a pump process. On a busy machine it decides how late packets are: with six busy
// processes to a core, p99 of what a round trip took too long was 0.4 ms when RealTime and 50 ms at the highest Niceness.
type Urgency string

const (
	RealTime Urgency = "real time" // before all ordinary processes, as the kernel's own netem is
	Nice     Urgency = "nice"      // real time was refused (no CAP_SYS_NICE, or a control group without a share of it)
	Ordinary Urgency = "ordinary"  // that too: delays are right on an idle machine only
)
