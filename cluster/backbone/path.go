package backbone

import (
	"encoding/binary"
	"io"
	"math"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/perigee-net/perigee/cluster/fec"
)

// speaksParity is the resource of a hello whose sender knows the messages below. Who does not is sent none but dialAnew. With parity/1 small datagrams were not covered: a group with
// one was never whole, and counted as lost.
const speaksParity = "parity/2"

// The messages on a hello stream behind its answer, each a byte and what follows it.
const (
	// dialAnew, from who was dialled, asks for another connection. Nothing follows.
	dialAnew = 1
	// parityToken lets the other end send parity. Four bytes follow: the token it is to carry. Who dialled sends it once it has
	// the other's.
	parityToken = 2
	// parityMode says whether parity is sent from now on: one byte, 0 or 1.
	parityMode = 3
	// parityReport says what has come since parity was agreed on: three numbers of eight bytes, fec.Report's.
	parityReport = 4
)

const reportLength = 3 * 8

// messageTimeout is how long a message may take to be written; a peer that does not read hears no more on this connection.
const messageTimeout = 10 * time.Millisecond

const (
	// farRTT is the round trip from which on a loss is worth parity: below it what is lost is soon sent again.
	farRTT = 8 * time.Millisecond

	// lossFloor is the share of packets that have to be lost for parity to be begun, and half of it for it to be given up.
	lossFloor = 2e-4

	// lossMemory is after how many packets a loss counts a third for how much is lost now, and lossLong for whether the path is one that loses packets: of so few that
	// lossMemory sees none, one that loses one in 1,000 loses by chance none of so many each quarter of a minute. lossTime is after how long it counts a third, for both.
	lossMemory = 5000
	lossLong   = 30_000
	lossTime   = 10 * time.Minute

	// vainParity is after how many datagrams of parity of which the peer has seen none it is given up, for vainTime; reportTime is
	// how long it may take to say that it has.
	vainParity = 200
	vainTime   = 5 * time.Minute
	reportTime = 3 * time.Second

	// firstDoubt is the share that a path of which nothing is known is taken to lose, and doubtMemory after how many packets a
	// third of it is left; lossFloor is until it has carried doubtful packets: so long it has a little parity.
	firstDoubt, doubtMemory = 0.005, 1000
	doubtful                = 20_000
)

// lossMeter is the share of packets that a path loses, of which the latest count most.
type lossMeter struct {
	lately, long counted
	all          uint64 // packets that were sent since the beginning
}

// counted is packets, those of late for more.
type counted struct{ sent, lost float64 }

func (c *counted) add(sent, lost uint64, elapsed time.Duration, memory float64) {
	keep := math.Exp(-float64(sent)/memory - elapsed.Seconds()/lossTime.Seconds())
	c.sent = c.sent*keep + float64(sent)
	c.lost = min(c.lost*keep+float64(lost), c.sent) // what was lost may be heard of later than it was sent
}

func (c *counted) share() float64 { return c.lost / max(c.sent, 1) }

func (m *lossMeter) add(sent, lost uint64, elapsed time.Duration) {
	m.lately.add(sent, lost, elapsed, lossMemory)
	m.long.add(sent, lost, elapsed, lossLong)
	m.all += sent
}

// share is what was seen to be lost of late, 0 to 1.
func (m *lossMeter) share() float64 { return m.lately.share() }

// supposed is the share that is to be reckoned with.
func (m *lossMeter) supposed() float64 {
	doubt := firstDoubt * math.Exp(-float64(m.all)/doubtMemory)
	if m.all < doubtful {
		doubt = max(doubt, lossFloor)
	}
	return max(m.share(), m.long.share(), doubt)
}

// queued says that packets queue up on a path: the smoothed round trip is far above the least one.
func queued(rtt, least time.Duration) bool { return rtt > least+least/2+10*time.Millisecond }

// congested says that of the packets that were sent while packets queued up more were lost than the path loses else: the queue is full, and
// who fills it has to see what that costs.
func congested(queue counted, loss float64) bool { return queue.lost > 2*loss*queue.sent+4 }

// protection says against what loss parity is sent on a path, 0 for none, and how long it may take to fill a group. rtt is the
// smoothed round trip; on says whether parity is sent now.
func protection(rtt time.Duration, loss float64, on bool) (against float64, wait time.Duration) {
	floor := lossFloor
	if on {
		floor /= 2
	}
	if rtt < farRTT || loss < floor {
		return 0, 0
	}
	return loss, min(max(rtt/8, 2*time.Millisecond), 20*time.Millisecond)
}

// path is what lies between this node and one address of a peer's, and all connections by it, of either end's dialling.
type path struct {
	addr  netip.AddrPort
	peer  *fec.Peer
	plain bool // no parity is to be sent

	mu       sync.Mutex
	watches  map[*watch]bool
	loss     lossMeter // while no packets queue up
	queue    counted   // while they do
	rtt      time.Duration
	least    time.Duration
	at       time.Time
	on       bool       // parity is sent
	heard    fec.Report // what the peer has said last
	counted  fec.Report // as much of it as the meter has
	told     fec.Report // what the peer was told last
	sent     float64    // bits a second
	received float64
	bytes    [3]uint64 // sent, received, and lost, since they were rated
	carried  peak      // what has arrived at the peer
	arrived  peak      // … and here
	rated    time.Time
	trial    trial
	doubt    doubt
}

// watch is one connection of a path for as long as its hello stream is open.
type watch struct {
	b             *Backbone
	path          *path
	conn          *quic.Conn
	hello         net.Conn
	narrow        func() // has it closed, for that its packets are too large
	agreed        bool   // the other end has sent its token; by path.mu, like what follows
	deaf          bool
	before        quic.ConnectionStats
	sent, packets uint64 // bytes, and in how many packets, since probes were last asked for
}

// watch has a connection counted among those of its path. narrow is to have it closed, for that its packets are too large.
func (b *Backbone) watch(conn *quic.Conn, hello net.Conn, narrow func()) *watch {
	at := addrPort(conn.RemoteAddr())
	w := &watch{b: b, conn: conn, hello: hello, narrow: narrow}
	peer := b.parity.Join(at)
	b.pathing.Lock()
	defer b.pathing.Unlock()
	p := b.paths[at]
	if p == nil {
		p = &path{addr: at, peer: peer, plain: b.config.NoParity, watches: map[*watch]bool{}, at: time.Now(), rated: time.Now()}
		b.paths[at] = p
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	w.path = p
	p.watches[w] = true
	return w
}

// end takes a connection out of its path, and forgets the path of which it was the last.
func (w *watch) end() {
	w.b.pathing.Lock()
	defer w.b.pathing.Unlock()
	p := w.path
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.watches, w)
	if len(p.watches) == 0 {
		delete(w.b.paths, p.addr)
	}
	p.peer.Leave()
}

// offer lets the other end send parity. It may before it has said so, and what went before that would be taken for lost where it was made of parity.
func (w *watch) offer() {
	w.path.mu.Lock()
	defer w.path.mu.Unlock()
	w.path.peer.Expect(true)
	w.say(binary.BigEndian.AppendUint32([]byte{parityToken}, w.path.peer.Token()))
}

// say writes a message. path.mu is held.
func (w *watch) say(message []byte) {
	if w.deaf {
		return
	}
	w.hello.SetWriteDeadline(time.Now().Add(messageTimeout))
	if _, err := w.hello.Write(message); err != nil {
		w.deaf = true
	}
}

// hear reads what the other end says until the stream ends. dialled says which end this is; agreed is called once both ends may send parity, and anew where the
// other asks for another connection.
func (w *watch) hear(dialled bool, agreed, anew func()) {
	var b [1 + reportLength]byte
	for {
		if _, err := io.ReadFull(w.hello, b[:1]); err != nil {
			return
		}
		length := 0
		switch b[0] {
		case dialAnew:
			anew()
			continue
		case parityToken:
			length = 4
		case parityMode:
			length = 1
		case parityReport:
			length = reportLength
		default:
			return // of a version to come; this end need not know
		}
		body := b[1:][:length]
		if _, err := io.ReadFull(w.hello, body); err != nil {
			return
		}
		switch b[0] {
		case parityToken:
			if dialled {
				w.offer()
			}
			w.agree(binary.BigEndian.Uint32(body))
			agreed()
		case parityMode:
			w.path.peer.Expect(body[0] != 0)
		case parityReport:
			w.path.mu.Lock()
			w.path.heard = fec.Report{
				Parity: binary.BigEndian.Uint64(body), Repaired: binary.BigEndian.Uint64(body[8:]), Lost: binary.BigEndian.Uint64(body[16:]),
			}
			w.path.mu.Unlock()
		}
	}
}

// agree takes note of the other end's token: from now on it takes parity.
func (w *watch) agree(token uint32) {
	p := w.path
	p.mu.Lock()
	defer p.mu.Unlock()
	p.peer.Use(token)
	w.agreed = true
	p.measure(time.Now())
	w.say(mode(p.on)) // the peer may have heard another before
}

func mode(on bool) []byte {
	if on {
		return []byte{parityMode, 1}
	}
	return []byte{parityMode, 0}
}

// measure takes what has happened since it was called last, and decides on parity. mu is held.
func (p *path) measure(now time.Time) {
	elapsed := now.Sub(p.at)
	p.at = now
	var sent, lost, bytesSent, bytesReceived, bytesLost uint64
	p.rtt, p.least = 0, 0
	agreed := false
	for w := range p.watches {
		agreed = agreed || w.agreed
		stats := w.conn.ConnectionStats()
		sent += stats.PacketsSent - w.before.PacketsSent
		lost += stats.PacketsLost - w.before.PacketsLost
		bytesSent += stats.BytesSent - w.before.BytesSent
		w.sent += stats.BytesSent - w.before.BytesSent
		w.packets += stats.PacketsSent - w.before.PacketsSent
		bytesReceived += stats.BytesReceived - w.before.BytesReceived
		bytesLost += max(stats.BytesLost, w.before.BytesLost) - w.before.BytesLost // it may become less
		w.before = stats
		if p.rtt == 0 || stats.SmoothedRTT < p.rtt {
			p.rtt = stats.SmoothedRTT
		}
		if p.least == 0 || stats.MinRTT < p.least {
			p.least = stats.MinRTT
		}
	}
	// What parity has repaired QUIC may have taken for lost, or not.
	if repaired := p.heard.Repaired + p.heard.Lost; repaired > p.counted.Repaired+p.counted.Lost {
		lost = max(lost, repaired-p.counted.Repaired-p.counted.Lost)
	}
	p.counted = p.heard
	full := false
	if queued(p.rtt, p.least) {
		p.queue.add(sent, lost, elapsed, lossMemory)
		if full = congested(p.queue, p.loss.supposed()); !full {
			p.loss.all += sent // the path is less unknown for it, but its queue may have lost some
		}
	} else {
		p.loss.add(sent, lost, elapsed)
		p.queue = counted{}
	}
	p.bytes[0] += bytesSent
	p.bytes[1] += bytesReceived
	p.bytes[2] += bytesLost
	if seconds := now.Sub(p.rated).Seconds(); seconds >= measureInterval.Seconds()/2 {
		p.sent, p.received = float64(p.bytes[0])*8/seconds, float64(p.bytes[1])*8/seconds
		p.carried.add(float64(p.bytes[0]-min(p.bytes[0], p.bytes[2]))*8/seconds, now)
		p.arrived.add(p.received, now)
		p.bytes, p.rated = [3]uint64{}, now
	}

	against, wait := protection(p.rtt, p.loss.supposed(), p.on)
	if vain := p.trial.vain(now, p.peer.ParitySent(), p.heard.Parity); !agreed || p.plain || vain || full {
		against = 0
	} else if p.rtt >= farRTT {
		p.peer.Limit()
	}
	if on := p.peer.Protect(against, wait); on != p.on {
		p.on = on
		p.tell(mode(on))
	}
	if report := p.peer.Report(); report != p.told {
		p.told = report
		message := binary.BigEndian.AppendUint64([]byte{parityReport}, report.Parity)
		message = binary.BigEndian.AppendUint64(message, report.Repaired)
		p.tell(binary.BigEndian.AppendUint64(message, report.Lost))
	}
}

// trial is whether parity arrives: where a path carries no packets that large, none does.
type trial struct {
	arrived uint64    // of parity, when some had arrived last
	sent    uint64    // of parity, at that time
	since   time.Time // when more was sent
	until   time.Time
}

// vain says that parity was found not to arrive, not long ago. sent and arrived are all of it.
func (t *trial) vain(now time.Time, sent, arrived uint64) bool {
	switch {
	case arrived != t.arrived || now.Before(t.until):
		t.arrived, t.sent, t.since = arrived, sent, now
	case sent == t.sent:
		t.since = now
	case sent-t.sent > vainParity && now.Sub(t.since) >= reportTime:
		t.sent, t.until = sent, now.Add(vainTime)
	}
	return now.Before(t.until)
}

// tell writes a message on all connections, of which one may be about to end. mu is held.
func (p *path) tell(message []byte) {
	for w := range p.watches {
		if w.agreed {
			w.say(message)
		}
	}
}

// seen is what was measured of a path.
type seen struct {
	loss           float64
	parity         bool
	sent, received float64
	carried        float64
	arrived        float64
}

// pathTo is what was last measured of the path to an address; nothing, where there is no connection.
func (b *Backbone) pathTo(addr netip.AddrPort) seen {
	b.pathing.Lock()
	defer b.pathing.Unlock()
	p := b.paths[unmapped(addr)]
	if p == nil {
		return seen{}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return seen{loss: p.loss.share(), parity: p.on, sent: p.sent, received: p.received, carried: p.carried.of(time.Now()), arrived: p.arrived.of(time.Now())}
}

// measurePaths measures all paths.
func (b *Backbone) measurePaths() {
	b.pathing.Lock()
	defer b.pathing.Unlock()
	for _, p := range b.paths {
		p.mu.Lock()
		p.measure(time.Now())
		p.probe(time.Now())
		p.mu.Unlock()
	}
}
