//go:build linux

package procs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/perigee-net/perigee/node/api"
)

// floodTime and floodClients make more than a thousand changes a second on any machine that can answer them.
const (
	floodTime    = 4 * time.Second
	floodClients = 600
)

// TestAFloodOfChangesIsTakenOrRefusedAndNothingIsLost has more clients than a node serves at once ask for changes as fast as
// they are answered.
func TestAFloodOfChangesIsTakenOrRefusedAndNothingIsLost(t *testing.T) {
	c := open(t)
	ctx := within(t, comeUp+2*time.Minute)
	if err := c.Found(ctx, 3, 3); err != nil {
		t.Fatal(err)
	}
	serveSite(ctx, t, c)
	var taken, busy, asked atomic.Int64
	var last [floodClients]atomic.Int64 // the highest value that was acknowledged
	var clients sync.WaitGroup
	began := time.Now()
	leader := c.Leader(ctx)
	for i := range floodClients {
		n := c.Nodes[i%3]
		if i%4 != 0 {
			n = leader
		}
		clients.Go(func() {
			for v := int64(1); time.Since(began) < floodTime; v++ {
				once, cancel := context.WithTimeout(ctx, 30*time.Second)
				_, err := n.Client().Apply(once, api.ApplyRequest{Files: []api.File{{Name: "f", Data: fmt.Sprintf(
					"kind: TargetGroup\nname: flood-%d\nlabels: {v: \"%d\"}\nregion: eu-central-1\nprotocol: HTTP\nport: 80\n", i, v)}}})
				cancel()
				asked.Add(1)
				var refusal *api.Error
				switch {
				case err == nil:
					taken.Add(1)
					last[i].Store(v)
				case errors.As(err, &refusal) && refusal.Status == http.StatusTooManyRequests:
					busy.Add(1)
				default:
					t.Errorf("client %d at %s: %v", i, n.Name, err)
					return
				}
			}
		})
	}
	clients.Wait()
	span := time.Since(began)
	for _, n := range c.Nodes {
		if err := serves(n); err != nil {
			t.Error(err)
		}
		now, peak, err := n.Memory()
		if err != nil || peak > 1<<30 {
			t.Errorf("%s: %d MB at its peak, %v", n.Name, peak>>20, err)
		}
		t.Logf("%s has %d MB, at its peak %d MB", n.Name, now>>20, peak>>20)
	}
	t.Logf("%.0f asked a second: %.0f taken, %.0f told to come again", float64(asked.Load())/span.Seconds(), float64(taken.Load())/span.Seconds(), float64(busy.Load())/span.Seconds())
	if err := c.Whole(ctx, 3); err != nil {
		t.Fatal(err)
	}
	if now := c.Leader(ctx); now != leader {
		t.Logf("the lead went from %s to %s", leader.Name, now.Name)
	}
	for _, n := range c.Nodes {
		list, err := n.Client().Resources(ctx, api.ResourcesQuery{Kind: "TargetGroup"})
		if err != nil {
			t.Fatal(err)
		}
		there := map[string]string{}
		for _, r := range list.Resources {
			there[r.Name] = r.YAML
		}
		for i := range last {
			if v := last[i].Load(); v > 0 && !strings.Contains(there[fmt.Sprintf("flood-%d", i)], fmt.Sprintf("{v: \"%d\"}", v)) {
				t.Errorf("%s has lost the change of client %d to %d: %q", n.Name, i, v, there[fmt.Sprintf("flood-%d", i)])
			}
		}
	}
}

// endless is a body of so many bytes, of which it counts those that were read.
type endless struct {
	left, read int64
}

func (e *endless) Read(p []byte) (int, error) {
	if e.left <= 0 {
		return 0, io.EOF
	}
	n := int(min(int64(len(p)), e.left))
	for i := range p[:n] {
		p[i] = '['
	}
	e.left -= int64(n)
	e.read += int64(n)
	return n, nil
}

// bomb is a small file that means a billion values, if aliases are followed.
func bomb() string {
	var b strings.Builder
	b.WriteString("kind: TargetGroup\nname: bomb\nregion: eu-central-1\na0: &a0 [x, x, x, x, x, x, x, x, x, x]\n")
	for i := range 9 {
		fmt.Fprintf(&b, "a%d: &a%d [*a%d, *a%d, *a%d, *a%d, *a%d, *a%d, *a%d, *a%d, *a%d, *a%d]\n", i+1, i+1, i, i, i, i, i, i, i, i, i, i)
	}
	return b.String()
}

func TestAHugeBodyAndABombAreRefusedAtOnceInBoundedMemory(t *testing.T) {
	t.Parallel()
	c := open(t)
	ctx := within(t, comeUp+time.Minute)
	if err := c.Found(ctx, 1, 1); err != nil {
		t.Fatal(err)
	}
	n := c.Nodes[0]
	raw := http.Client{Transport: &http.Transport{DisableKeepAlives: true, ExpectContinueTimeout: patience, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(n.Data, api.Socket))
	}}}
	wrap := func(open string, content io.Reader, close string) io.Reader {
		return io.MultiReader(strings.NewReader(open), content, strings.NewReader(close))
	}
	const mb = 1 << 20
	open, close := `{"files":[{"name":"f","data":"`, `"}]}`
	framed := int64(len(open) + len(close))
	for _, test := range []struct {
		name   string
		body   func() (io.Reader, int64) // −1: its length is not told
		at     int                       // once at a time, or so many
		status []int
		within time.Duration
		memory int64 // more than before
	}{
		{"100 MB, as it says", func() (io.Reader, int64) { return &endless{left: 100 * mb}, 100 * mb }, 1, []int{413}, 2 * time.Second, 16 * mb},
		{"100 MB, unsaid", func() (io.Reader, int64) { return &endless{left: 100 * mb}, -1 }, 1, []int{413}, 10 * time.Second, 150 * mb},
		{"an alias bomb", func() (io.Reader, int64) {
			text := strings.ReplaceAll(bomb(), "\n", `\n`)
			return wrap(open, strings.NewReader(text), close), int64(len(text)) + framed
		}, 1, []int{400, 422}, 2 * time.Second, 64 * mb},
		{"30 MB of brackets in one file", func() (io.Reader, int64) {
			return wrap(open, &endless{left: 30 * mb}, close), 30*mb + framed
		}, 1, []int{422}, 10 * time.Second, 250 * mb},
		{"30 MB of brackets, 20 times at once", func() (io.Reader, int64) {
			return wrap(open, &endless{left: 30 * mb}, close), 30*mb + framed
		}, 20, []int{422, 429}, 30 * time.Second, 600 * mb},
	} {
		if err := n.ForgetPeak(); err != nil {
			t.Fatal(err)
		}
		before, _, err := n.Memory()
		if err != nil {
			t.Fatal(err)
		}
		var all sync.WaitGroup
		for range test.at {
			all.Go(func() {
				body, length := test.body()
				req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://perigee/v1/apply", body)
				if err != nil {
					t.Error(err)
					return
				}
				req.ContentLength = length
				if length > 32*mb {
					req.Header.Set("Expect", "100-continue") // as curl does
				}
				began := time.Now()
				res, err := raw.Do(req)
				if err != nil {
					if !strings.Contains(err.Error(), "broken pipe") && !strings.Contains(err.Error(), "reset") {
						t.Errorf("%s: %v", test.name, err)
					}
					return // it was cut off while it still sent
				}
				defer res.Body.Close()
				said, _ := io.ReadAll(io.LimitReader(res.Body, 300))
				fits := false
				for _, s := range test.status {
					fits = fits || s == res.StatusCode
				}
				if took := time.Since(began); !fits || took > test.within {
					t.Errorf("%s: %s after %v: %s", test.name, res.Status, took, said)
				} else if test.at == 1 {
					t.Logf("%s: %s after %v: %s", test.name, res.Status, took.Round(time.Millisecond), bytes.TrimSpace(said))
				}
			})
		}
		all.Wait()
		_, peak, err := n.Memory()
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %d MB at its peak, %d before", test.name, peak>>20, before>>20)
		if peak-before > test.memory {
			t.Errorf("%s: it took %d MB", test.name, (peak-before)>>20)
		}
	}
	if _, err := n.Client().Status(ctx); err != nil {
		t.Error(err)
	}
}
