// Package faulty is an origin that can be told to misbehave: a small HTTP server and a TCP echo that are well until an
// order says otherwise, and then hang, lie, trickle, break off or refuse, all requests or a share of them, until it is
// taken back.
//
// It is what a laboratory points its load balancers at, to see what becomes of users. It is no model of any one server,
// and it does not misbehave by itself.
//
// Orders come to its control port, which always behaves, and to ControlPath of its HTTP port, which answers as long as
// connections get that far. Anyone who reaches it may give orders: it belongs into a laboratory and nowhere else.
package faulty

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// ControlPath takes orders, as the control port does at any path: POST gives them, one a line, GET tells those in force.
const ControlPath = "/.faulty"

// ControlPort is where the control port usually is.
const ControlPort = 8079

// Bounds.
const (
	maxConns   = 4096    // of each port; those beyond are closed
	maxOrders  = 4 << 10 // bytes of one request of orders
	maxContent = 1 << 30 // bytes that /bytes/N gives
	maxBody    = 1 << 20 // bytes of a request's body that are read
	headTime   = 10 * time.Second
	again      = 100 * time.Millisecond // until a port that could not be opened is tried again
)

// Config is what an Origin is made of.
type Config struct {
	Name   string // what it calls itself in X-Origin and in its greeting
	Listen func(network, address string) (net.Listener, error)
	// Addresses; "": not served. The control port is needed.
	HTTP, TCP, Control string
	Seed               uint64 // of chance
	Log                *slog.Logger
}

// Origin is one such server. Made by New, it serves while Run runs.
type Origin struct {
	cfg Config
	// work is the requests and flows that are being served; none begins once over is set.
	work sync.WaitGroup

	mu     sync.Mutex
	doors  []*door
	over   bool
	orders []Order // in the order of kinds
	random *rand.Rand
	served map[string]int // requests and flows by what became of them
}

// New makes an origin that is well.
func New(cfg Config) (*Origin, error) {
	if cfg.Listen == nil || cfg.Control == "" {
		return nil, errors.New("faulty: no way to listen, or no control port")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Origin{cfg: cfg, random: rand.New(rand.NewPCG(cfg.Seed, 1)), served: map[string]int{}}, nil
}

// Run serves until the context ends, once, and returns when all is closed and nothing is being served. The error is that of
// a port that could not be opened at first.
func (o *Origin) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	control, err := o.cfg.Listen("tcp", o.cfg.Control)
	if err != nil {
		return fmt.Errorf("open the control port: %w", err)
	}
	defer control.Close()
	web, boss := o.server(ctx, o), o.server(ctx, http.HandlerFunc(o.control))
	var doors []*door
	if o.cfg.HTTP != "" {
		doors = append(doors, newDoor(o, o.cfg.HTTP, func(_ context.Context, l net.Listener) { web.Serve(l) }))
	}
	if o.cfg.TCP != "" {
		doors = append(doors, newDoor(o, o.cfg.TCP, o.echoes))
	}
	for _, d := range doors {
		defer d.shut()
		if err := d.open(); err != nil {
			return err
		}
	}
	o.mu.Lock()
	o.doors = doors
	o.heed()
	o.mu.Unlock()

	var wg sync.WaitGroup
	for _, d := range doors {
		wg.Go(func() { d.serve(ctx) })
	}
	wg.Go(func() { boss.Serve(control) })
	<-ctx.Done()
	for _, d := range doors {
		d.shut()
	}
	boss.Close()
	web.Close()
	wg.Wait()
	o.mu.Lock()
	o.over = true
	o.mu.Unlock()
	o.work.Wait()
	return nil
}

// server is an HTTP server whose requests end with the context, those whose connection was taken from it too.
func (o *Origin) server(ctx context.Context, handler http.Handler) *http.Server {
	return &http.Server{
		Handler: handler, ReadHeaderTimeout: headTime, MaxHeaderBytes: 64 << 10,
		BaseContext: func(net.Listener) context.Context { return ctx },
		ErrorLog:    slog.NewLogLogger(o.cfg.Log.Handler(), slog.LevelDebug),
	}
}

// enter counts work that begins, unless all is over.
func (o *Origin) enter() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.over {
		return false
	}
	o.work.Add(1)
	return true
}

func (o *Origin) leave() { o.work.Done() }

// Orders are those in force.
func (o *Origin) Orders() []Order {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.orders)
}

// Served is how many requests and flows there were, by what became of them: well, or the kind of order that ended them.
func (o *Origin) Served() map[string]int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return maps.Clone(o.served)
}

// Tell gives orders, one a line, all or none: see Grammar. What Refuse closes is closed when Tell returns.
func (o *Origin) Tell(text string) error {
	var changes []change
	for line := range strings.Lines(text) {
		if strings.TrimSpace(line) == "" {
			continue
		}
		c, err := parse(line)
		if err != nil {
			return err
		}
		changes = append(changes, c)
	}
	if len(changes) == 0 {
		_, err := parse("")
		return err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, c := range changes {
		o.orders = after(o.orders, c)
	}
	o.heed()
	o.cfg.Log.Info("told", "orders", fmt.Sprint(o.orders))
	return nil
}

// heed closes or opens the ports as the orders say.
func (o *Origin) heed() {
	refuse := slices.ContainsFunc(o.orders, func(order Order) bool { return order.What == Refuse })
	for _, d := range o.doors {
		d.refuse(refuse)
	}
}

// after is the orders after a change, in the order of kinds.
func after(orders []Order, c change) []Order {
	var next []Order
	for _, kind := range kinds {
		if c.put != nil && c.put.What == kind {
			next = append(next, *c.put)
			continue
		}
		for _, order := range orders {
			if order.What == kind && !c.well && c.undo != kind {
				next = append(next, order)
			}
		}
	}
	return next
}

// plan draws what becomes of one request or flow.
func (o *Origin) plan() plan {
	o.mu.Lock()
	defer o.mu.Unlock()
	p := planned(o.orders, o.random.Float64)
	what := string(p.end)
	switch {
	case p.end != "":
	case p.status != 0:
		what = string(Status)
	case p.slowHead+p.slowBody > 0:
		what = "slow"
	default:
		what = "well"
	}
	o.served[what]++
	return p
}

// drops draws whether a connection is reset as soon as it is accepted.
func (o *Origin) drops() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, order := range o.orders {
		if order.What == Drop && o.random.Float64() < order.Share {
			o.served[string(Drop)]++
			return true
		}
	}
	return false
}

// control takes orders.
func (o *Origin) control(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	if r.Method == http.MethodPost {
		text, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxOrders))
		if err == nil {
			err = o.Tell(string(text))
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
	}
	var b strings.Builder
	for _, order := range o.Orders() {
		b.WriteString(order.String() + "\n")
	}
	if b.Len() == 0 {
		b.WriteString("well\n")
	}
	io.WriteString(w, b.String())
}

// Tell gives orders to the origin whose control port is at an address, "" to ask, and returns those in force, one a line.
func Tell(ctx context.Context, dial func(ctx context.Context, network, address string) (net.Conn, error), address, text string) (string, error) {
	transport := &http.Transport{DialContext: dial, DisableKeepAlives: true}
	defer transport.CloseIdleConnections()
	method := http.MethodPost
	if text == "" {
		method = http.MethodGet
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://"+address+ControlPath, strings.NewReader(text))
	if err != nil {
		return "", fmt.Errorf("tell %s: %w", address, err)
	}
	res, err := transport.RoundTrip(req)
	if err != nil {
		return "", fmt.Errorf("tell %s: %w", address, err)
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(res.Body, maxOrders))
	if err != nil {
		return "", fmt.Errorf("tell %s: %w", address, err)
	}
	if res.StatusCode != http.StatusOK {
		return "", errors.New(strings.TrimSpace(string(answer)))
	}
	return string(answer), nil
}

// content is what a path gives when all is well: N bytes for /bytes/N, else a line with the origin's name.
func (o *Origin) content(path string) (body io.Reader, size int64) {
	if number, ok := strings.CutPrefix(path, "/bytes/"); ok {
		if n, err := strconv.ParseInt(number, 10, 64); err == nil && n >= 0 && n <= maxContent {
			return io.LimitReader(&pattern{}, n), n
		}
	}
	text := o.cfg.Name + " " + path + "\n"
	return strings.NewReader(text), int64(len(text))
}

// pattern is bytes without end: 0123456789abcdef again and again, in lines of 16.
type pattern struct{ at int }

func (p *pattern) Read(b []byte) (int, error) {
	const line = "0123456789abcde\n"
	for i := range b {
		b[i] = line[(p.at+i)%len(line)]
	}
	p.at = (p.at + len(b)) % len(line)
	return len(b), nil
}

// ServeHTTP answers a request, well or as it is told.
func (o *Origin) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !o.enter() {
		panic(http.ErrAbortHandler)
	}
	defer o.leave()
	if r.URL.Path == ControlPath {
		o.control(w, r)
		return
	}
	p := o.plan()
	if p.end == Hang {
		<-r.Context().Done()
		panic(http.ErrAbortHandler)
	}
	io.Copy(io.Discard, io.LimitReader(r.Body, maxBody)) // else an orderly close would be a reset
	if !sleep(r.Context(), p.slowHead) {
		return
	}
	body, size := o.content(r.URL.Path)
	if p.status == 0 {
		p.status = http.StatusOK
	}
	if r.Method == http.MethodHead {
		body = strings.NewReader("")
	}
	switch p.end {
	case Garbage, Reset, Cut, Length:
		o.breakOff(w, r, p, body, size)
		return
	}
	h := w.Header()
	o.head(h.Set)
	if p.end == Endless {
		body = &pattern{}
	} else if p.status != http.StatusNoContent && p.status != http.StatusNotModified {
		h.Set("Content-Length", strconv.FormatInt(size, 10))
	} else {
		body, size = strings.NewReader(""), 0
	}
	w.WriteHeader(p.status)
	flush := http.NewResponseController(w)
	trickle(r.Context(), w, func() { flush.Flush() }, body, size, p.slowBody)
}

func (o *Origin) head(set func(name, value string)) {
	set("Content-Type", "text/plain; charset=utf-8")
	set("Cache-Control", "public, max-age=60")
	set("X-Origin", o.cfg.Name)
}

// breakOff answers by hand, as no server that is well does, and ends the connection.
func (o *Origin) breakOff(w http.ResponseWriter, r *http.Request, p plan, body io.Reader, size int64) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler) // not HTTP/1: the stream is reset, which is as near as it gets
	}
	defer conn.Close()
	conn.SetDeadline(time.Time{})
	// A client that goes away ends what waits here; the server knows no more of this connection.
	defer context.AfterFunc(r.Context(), func() { conn.Close() })()
	if p.end == Reset && p.n == beforeHead {
		reset(conn)
		return
	}
	if p.end == Garbage {
		io.WriteString(conn, "\x16\x03\x01 HTTP/9.9 banana\r\n: \x00\xff\r\n\r\n")
		return
	}
	told := size
	if p.end == Length {
		told = max(0, size+p.n)
	}
	var head bytes.Buffer
	fmt.Fprintf(&head, "HTTP/1.1 %d %s\r\n", p.status, http.StatusText(p.status))
	o.head(func(name, value string) { head.WriteString(name + ": " + value + "\r\n") })
	fmt.Fprintf(&head, "Content-Length: %d\r\n", told)
	if p.end != Length {
		head.WriteString("Connection: close\r\n")
	}
	head.WriteString("\r\n")
	if _, err := conn.Write(head.Bytes()); err != nil {
		return
	}
	if p.end != Length {
		size = min(size, p.n)
		body = io.LimitReader(body, size)
	}
	trickle(r.Context(), conn, func() {}, body, size, p.slowBody)
	if p.end == Reset {
		reset(conn)
	}
}

// reset makes the close that follows a TCP reset.
func reset(conn net.Conn) {
	if l, ok := conn.(interface{ SetLinger(int) error }); ok {
		l.SetLinger(0)
	}
	conn.Close()
}

// pieces is in how many a slow body comes.
const pieces = 20

// trickle writes a body of about size bytes, evenly over a time; one without end goes on at that speed. It ends early when
// the context does, or nobody takes it.
func trickle(ctx context.Context, w io.Writer, flush func(), body io.Reader, size int64, over time.Duration) {
	if over == 0 {
		io.Copy(w, body)
		return
	}
	flush()
	for ahead := bufio.NewReader(body); ; {
		if _, err := ahead.Peek(1); err != nil || !sleep(ctx, over/pieces) {
			return
		}
		_, err := io.CopyN(w, ahead, max(1, (size+pieces-1)/pieces))
		flush()
		if err != nil && err != io.EOF {
			return
		}
	}
}

// sleep waits, and says whether the time passed before the context ended.
func sleep(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
