package faulty

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Order is one misbehaviour, in force until it is taken back.
type Order struct {
	What  What
	For   time.Duration // of SlowHead and SlowBody
	N     int64         // of Status: the status; of Reset, Cut: bytes of the body that come before; of Length: by how many it is wrong
	Share float64       // of requests and flows, 0…1
}

// What is a kind of misbehaviour. Of each, one order at most is in force.
type What string

// Kinds of misbehaviour. Those of one request add up: slow head 1s, status 503 is a 503 that comes late. What ends a response
// in one way comes before what would end it in another: in the order hang, garbage, reset, cut, length, endless. In flows
// status and length mean nothing, and garbage is endless.
const (
	SlowHead What = "slow head" // DURATION: the answer begins so late
	SlowBody What = "slow body" // DURATION: the body takes so long, evenly
	Status   What = "status"    // 200…599
	Hang     What = "hang"      // the request is read and never answered
	Garbage  What = "garbage"   // what comes is no HTTP
	Reset    What = "reset"     // BYTES: a TCP reset behind so much of the body (what was not sent by then is lost); before the head, if no BYTES are told
	Cut      What = "cut"       // BYTES: an orderly close behind so much of the body, of which more was promised
	Length   What = "length"    // ±N: Content-Length is so much more or less than comes
	Endless  What = "endless"   // the body does not end
	Refuse   What = "refuse"    // the ports are closed: dials are refused; those who are here stay
	Drop     What = "drop"      // connections are reset as soon as they are accepted
)

// beforeHead is the N of a Reset before the head.
const beforeHead = -1

// kinds are all kinds, in the order in which they are told.
var kinds = []What{SlowHead, SlowBody, Status, Hang, Garbage, Reset, Cut, Length, Endless, Refuse, Drop}

// Bounds of orders.
const (
	maxSlow  = time.Hour
	maxBytes = 1 << 30
	// leastShare is 1 in 10,000.
	leastShare = 0.0001
)

// Grammar is what Parse reads, for people.
const Grammar = `slow head DURATION   slow body DURATION   status N   hang   garbage   reset [after BYTES]   cut after BYTES
length ±N   endless   refuse   drop   — each, but refuse, may end in: share 20%
not KIND   takes one back      well   takes all back`

// change is what some words ask for.
type change struct {
	put  *Order
	undo What // taken back, if it is not ""
	well bool // all are taken back
}

// parse reads the words of one order: "slow head 2s share 20%", "not slow head", "well".
func parse(text string) (change, error) {
	words := strings.Fields(text)
	fail := func() (change, error) {
		return change{}, fmt.Errorf("no such order: %.80q; there are:\n%s", text, Grammar)
	}
	if len(words) == 0 {
		return fail()
	}
	if slices.Equal(words, []string{"well"}) {
		return change{well: true}, nil
	}
	if words[0] == "not" {
		undo := What(strings.Join(words[1:], " "))
		if !slices.Contains(kinds, undo) {
			return fail()
		}
		return change{undo: undo}, nil
	}
	o := Order{Share: 1}
	if n := len(words); n > 2 && words[n-2] == "share" {
		number, percent := strings.CutSuffix(words[n-1], "%")
		share, err := strconv.ParseFloat(number, 64)
		if percent {
			share /= 100
		}
		if err != nil || !(share >= leastShare && share <= 1) {
			return change{}, fmt.Errorf("the share must be 0.01%%–100%%, not %.40q", words[n-1])
		}
		o.Share, words = math.Round(share*1e6)/1e6, words[:n-2]
	}
	i := slices.IndexFunc(kinds, func(k What) bool {
		return len(words) >= strings.Count(string(k), " ")+1 && strings.Join(words[:strings.Count(string(k), " ")+1], " ") == string(k)
	})
	if i < 0 {
		return fail()
	}
	o.What = kinds[i]
	if problem := o.arguments(words[strings.Count(string(o.What), " ")+1:]); problem != "" {
		return change{}, fmt.Errorf("%s: %s", o.What, problem)
	}
	if o.What == Refuse && o.Share != 1 {
		return change{}, fmt.Errorf("a port is closed for all or none: refuse has no share")
	}
	return change{put: &o}, nil
}

// arguments reads what follows the kind, and says what is wrong with it.
func (o *Order) arguments(words []string) (problem string) {
	var err error
	switch o.What {
	case SlowHead, SlowBody:
		if len(words) != 1 {
			return "wants a duration"
		}
		if o.For, err = time.ParseDuration(words[0]); err != nil || o.For <= 0 || o.For > maxSlow {
			return fmt.Sprintf("wants a duration up to %v, not %.40q", maxSlow, words[0])
		}
		return ""
	case Status, Length:
		least, most := int64(200), int64(599)
		if o.What == Length {
			least, most = -maxBytes, maxBytes
		}
		if len(words) != 1 {
			return "wants a number"
		}
		if o.N, err = strconv.ParseInt(words[0], 10, 64); err != nil || o.N < least || o.N > most || o.What == Length && o.N == 0 {
			return fmt.Sprintf("wants a number %d–%d, not %.40q", least, most, words[0])
		}
		return ""
	case Reset, Cut:
		if o.What == Reset && len(words) == 0 {
			o.N = beforeHead
			return ""
		}
		if len(words) != 2 || words[0] != "after" {
			return "wants: after BYTES"
		}
		if o.N, err = strconv.ParseInt(words[1], 10, 64); err != nil || o.N < 0 || o.N > maxBytes {
			return fmt.Sprintf("wants 0–%d bytes, not %.40q", maxBytes, words[1])
		}
		return ""
	}
	if len(words) != 0 {
		return fmt.Sprintf("wants nothing more, not %.40q", strings.Join(words, " "))
	}
	return ""
}

// String is the order as it is told.
func (o Order) String() string {
	text := string(o.What)
	switch o.What {
	case SlowHead, SlowBody:
		text += " " + o.For.String()
	case Status:
		text += fmt.Sprintf(" %d", o.N)
	case Length:
		text += fmt.Sprintf(" %+d", o.N)
	case Reset, Cut:
		if o.N != beforeHead {
			text += fmt.Sprintf(" after %d", o.N)
		}
	}
	if o.Share != 1 {
		text += " share " + strconv.FormatFloat(math.Round(o.Share*1e6)/1e4, 'f', -1, 64) + "%"
	}
	return text
}

// plan is what becomes of one request: the orders that hit it, put together.
type plan struct {
	slowHead, slowBody time.Duration
	status             int  // 0: what the path gives
	end                What // how the response ends; "": well
	n                  int64
}

// ends are the kinds that end a response, the strongest first.
var ends = []What{Hang, Garbage, Reset, Cut, Length, Endless}

// planned puts together the orders that hit one request, by a chance for each: 0…1, drawn by the caller.
func planned(orders []Order, chance func() float64) plan {
	var p plan
	strength := len(ends)
	for _, o := range orders {
		if chance() >= o.Share {
			continue
		}
		switch o.What {
		case SlowHead:
			p.slowHead = o.For
		case SlowBody:
			p.slowBody = o.For
		case Status:
			p.status = int(o.N)
		default:
			if i := slices.Index(ends, o.What); i >= 0 && i < strength {
				strength, p.end, p.n = i, o.What, o.N
			}
		}
	}
	return p
}
