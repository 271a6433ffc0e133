package pump

import (
	"bufio"
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/perigee-net/perigee/testbed/wan"
)

// served is a pump process, within this one. Its devices are stand-ins whose other ends are found by name.
type served struct {
	socket string
	ended  chan error
	mu     sync.Mutex
	ours   map[string]int
}

func serving(t *testing.T, socket string) *served {
	t.Helper()
	before := goleak.IgnoreCurrent()
	s := &served{socket: socket, ended: make(chan error, 1), ours: map[string]int{}}
	ctx, stop := context.WithCancel(context.Background())
	go func() {
		err := serve(ctx, socket, func(namespace, name string) (*os.File, error) {
			if name == "refused" {
				return nil, errors.New("namespace " + namespace + ": no device can be made")
			}
			pumps, ours := device(t)
			s.mu.Lock()
			defer s.mu.Unlock()
			s.ours[namespace+"/"+name] = ours
			return pumps, nil
		}, Ordinary)
		s.ended <- err
		close(s.ended)
	}()
	t.Cleanup(func() {
		stop()
		s.wait(t)
		goleak.VerifyNone(t, before)
	})
	return s
}

func (s *served) wait(t *testing.T) {
	t.Helper()
	select {
	case err := <-s.ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(long):
		t.Error("the pump goes on")
	}
}

func (s *served) dial(t *testing.T) *Client {
	t.Helper()
	for until := time.Now().Add(long); ; time.Sleep(ms) {
		c, err := Dial(s.socket)
		if err == nil {
			t.Cleanup(func() { c.Close() })
			return c
		}
		if time.Now().After(until) {
			t.Fatal(err)
		}
	}
}

func (s *served) device(name string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ours[name]
}

func TestAPumpProcessDoesWhatItsClientsAsk(t *testing.T) {
	s := serving(t, filepath.Join(t.TempDir(), "pump"))
	c := s.dial(t)
	icn, fra := Device{"icn", "w-fra"}, Device{"fra", "w-icn"}
	if err := c.Add("icn-fra", icn, fra, wan.Path{Delay: ms}, wan.Path{Delay: 2 * ms, Loss: 1}); err != nil {
		t.Fatal(err)
	}
	a, b := s.device("icn/w-fra"), s.device("fra/w-icn")
	send(t, a, "hello")
	if got := receive(t, b, long); got != "hello" {
		t.Errorf("received %q", got)
	}
	// A second client finds what the first has made.
	d := s.dial(t)
	if err := d.Set("icn-fra", nil, &wan.Path{Delay: 3 * ms}); err != nil {
		t.Error(err)
	}
	if ab, ba, err := c.Paths("icn-fra"); err != nil || ab != (wan.Path{Delay: ms}) || ba != (wan.Path{Delay: 3 * ms}) {
		t.Errorf("the paths are %+v and %+v, %v", ab, ba, err)
	}
	send(t, b, "and back")
	if got := receive(t, a, long); got != "and back" {
		t.Errorf("received %q", got)
	}
	if err := d.Down("icn-fra", true, false); err != nil {
		t.Error(err)
	}
	if all, err := c.Stats(); err != nil || all["icn-fra"].AB.Packets != 1 || all["icn-fra"].BA.Packets != 1 || !all["icn-fra"].AB.Silent || all["icn-fra"].BA.Silent {
		t.Errorf("stats are %+v, %v", all, err)
	}
	if err := d.Remove("icn-fra"); err != nil {
		t.Error(err)
	}
	if _, err := unix.Write(a, []byte("x")); !errors.Is(err, unix.EPIPE) {
		t.Errorf("the device is still open: %v", err)
	}
	for name, err := range map[string]error{
		"a removed link":      c.Remove("icn-fra"),
		"the first device":    c.Add("x", Device{"icn", "refused"}, fra, wan.Path{}, wan.Path{}),
		"the second device":   c.Add("x", icn, Device{"fra", "refused"}, wan.Path{}, wan.Path{}),
		"a path that is none": c.Add("x", icn, fra, wan.Path{Loss: 3}, wan.Path{}),
		"a link without name": c.Set("", nil, nil),
	} {
		if err == nil || !strings.HasPrefix(err.Error(), "pump: ") {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Errors leave no devices.
	if err := c.Add("x", icn, fra, wan.Path{}, wan.Path{}); err != nil {
		t.Error(err)
	}
	if err := c.Quit(); err != nil {
		t.Error(err)
	}
	s.wait(t)
	if _, err := os.Stat(s.socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
	if _, err := c.Stats(); err == nil {
		t.Error("a pump that has ended answers")
	}
}

func TestAPumpEndsWhenItsFolderIsGone(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "bed")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	s := serving(t, filepath.Join(dir, "pump"))
	s.dial(t)
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	s.wait(t)
}

func TestOnePumpServesAtASocket(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "pump")
	// What a killed pump left is in nobody's way.
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	s := serving(t, socket)
	s.dial(t)
	err = serve(t.Context(), socket, nil, Ordinary)
	if err == nil || !strings.Contains(err.Error(), "serves there already") {
		t.Errorf("a second pump: %v", err)
	}
	if _, err := s.dial(t).Stats(); err != nil {
		t.Errorf("the first: %v", err)
	}
	if err := os.WriteFile(socket+".txt", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := serve(t.Context(), socket+".txt", nil, Ordinary); err == nil {
		t.Error("a file was taken for a dead socket")
	}
	if _, err := os.Stat(socket + ".txt"); err != nil {
		t.Error(err)
	}
}

func TestWhatIsNotALineOfOursIsAnsweredWithWhatIsWrong(t *testing.T) {
	s := serving(t, filepath.Join(t.TempDir(), "pump"))
	s.dial(t)
	for _, line := range []string{
		"", "hello", "{}", `{"do":"dance"}`, `{"do":"stats","link":"x"}`, `{"do":"stats"}{"do":"quit"}`, `{"do":"stats","when":"now"}`,
		`{"do":"add","link":"x"}`, `{"do":"set","link":"x","ab":{"Loss":7}}`, `{"do":"remove"}`, `{"do":"remove","link":"` + strings.Repeat("x", 300) + `"}`,
	} {
		if got := talk(t, s.socket, line+"\n"); !strings.HasPrefix(got, `{"error":"`) {
			t.Errorf("%.40s: %q", line, got)
		}
	}
	if got := talk(t, s.socket, strings.Repeat("x", maxAsked+1)+"\n"); got != "" {
		t.Errorf("a line too long was answered: %q", got)
	}
	if _, err := s.dial(t).Stats(); err != nil {
		t.Error(err)
	}
}

// talk says something on a connection of its own and returns the line that is answered; "" where it was closed.
func talk(t *testing.T, socket, text string) string {
	t.Helper()
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(long))
	_, _ = conn.Write([]byte(text)) // it may be closed before all has been read
	line, _ := bufio.NewReader(conn).ReadString('\n')
	return line
}

func TestMoreClientsThanAreHeardAtOnceWait(t *testing.T) {
	s := serving(t, filepath.Join(t.TempDir(), "pump"))
	var all []*Client
	for range maxClients {
		c := s.dial(t)
		if _, err := c.Stats(); err != nil {
			t.Fatal(err)
		}
		all = append(all, c)
	}
	late := s.dial(t)
	answered := make(chan error)
	go func() {
		_, err := late.Stats()
		answered <- err
	}()
	select {
	case <-answered:
		t.Error("one too many was heard")
	case <-time.After(50 * ms):
	}
	all[0].Close()
	if err := <-answered; err != nil {
		t.Error(err)
	}
}

func FuzzDecodeAsk(f *testing.F) {
	f.Add([]byte(`{"do":"add","link":"a","a":{"namespace":"n","name":"d"},"b":{"namespace":"m","name":"e"},"ab":{"Delay":1000000},"ba":{"Loss":0.5}}`))
	f.Add([]byte(`{"do":"down","link":"a","silentAB":true}`))
	f.Add([]byte(`{"do":"seed","link":"a","seed":18446744073709551615}`))
	f.Add([]byte(`{"do":"stats"}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		a, err := decodeAsk(line)
		if err != nil {
			return
		}
		for _, p := range []*wan.Path{a.AB, a.BA} {
			if p == nil {
				continue
			}
			if err := p.Validate(); err != nil {
				t.Errorf("took a path that cannot be: %v", err)
			}
			NewWire(*p, 1).Send(0, PacketSize)
		}
		if a.Do == askAdd && (a.A == nil || a.B == nil || a.AB == nil || a.BA == nil || a.Link == "") {
			t.Errorf("took %+v", a)
		}
	})
}
