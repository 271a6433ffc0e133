package pump

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/perigee-net/perigee/testbed/wan"
)

// patience is how long a call waits for the pump process: making devices takes milliseconds, a machine that swaps longer.
const patience = 20 * time.Second

// Client tells a pump process what to do. It may be used by several at once; they wait for each other.
type Client struct {
	mu     sync.Mutex
	conn   net.Conn
	answer *bufio.Reader
	broken error
}

// Dial reaches the pump process that serves at a socket.
func Dial(socket string) (*Client, error) {
	conn, err := net.DialTimeout("unix", socket, patience)
	if err != nil {
		return nil, fmt.Errorf("reach pump: %w", err)
	}
	return &Client{conn: conn, answer: bufio.NewReaderSize(conn, 64<<10)}, nil
}

// Add makes a TUN device at each end and the link between them.
func (c *Client) Add(link string, a, b Device, ab, ba wan.Path) error {
	_, err := c.ask(ask{Do: askAdd, Link: link, A: &a, B: &b, AB: &ab, BA: &ba})
	return err
}

// Remove removes a link and its devices.
func (c *Client) Remove(link string) error {
	_, err := c.ask(ask{Do: askRemove, Link: link})
	return err
}

// Set changes the paths of a link; nil leaves one as it is.
func (c *Client) Set(link string, ab, ba *wan.Path) error {
	_, err := c.ask(ask{Do: askSet, Link: link, AB: ab, BA: ba})
	return err
}

// Down makes each direction of a link silent, or lets it carry again.
func (c *Client) Down(link string, ab, ba bool) error {
	_, err := c.ask(ask{Do: askDown, Link: link, SilentAB: ab, SilentBA: ba})
	return err
}

// Seed has the dice of a link fall anew, as seed says: what is sent then is lost alike each time.
func (c *Client) Seed(link string, seed uint64) error {
	_, err := c.ask(ask{Do: askSeed, Link: link, Seed: seed})
	return err
}

// Paths are the paths of a link as they are now.
func (c *Client) Paths(link string) (ab, ba wan.Path, err error) {
	got, err := c.ask(ask{Do: askPaths, Link: link})
	if err == nil && (got.AB == nil || got.BA == nil) {
		err = errors.New("pump: it answered without paths")
	}
	if err != nil {
		return wan.Path{}, wan.Path{}, err
	}
	return *got.AB, *got.BA, nil
}

// Stats tells of all links, by their names.
func (c *Client) Stats() (map[string]Stats, error) {
	got, err := c.ask(ask{Do: askStats})
	return got.Stats, err
}

// Urgency tells how the process is scheduled.
func (c *Client) Urgency() (Urgency, error) {
	got, err := c.ask(ask{Do: askStats})
	return got.Urgency, err
}

// Quit ends the pump process, and with it all links.
func (c *Client) Quit() error {
	_, err := c.ask(ask{Do: askQuit})
	return err
}

// Close ends the connection; the pump goes on.
func (c *Client) Close() error { return c.conn.Close() }

// ask asks one thing. After an error of the connection itself what is read could be another's answer: no more is asked.
func (c *Client) ask(a ask) (answer, error) {
	line, err := json.Marshal(a)
	if err != nil {
		return answer{}, fmt.Errorf("ask pump: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.broken != nil {
		return answer{}, c.broken
	}
	got, err := c.exchange(append(line, '\n'))
	if err != nil {
		c.broken = fmt.Errorf("ask pump: %w", err)
		return answer{}, c.broken
	}
	if got.Error != "" {
		return answer{}, errors.New("pump: " + got.Error)
	}
	return got, nil
}

func (c *Client) exchange(line []byte) (answer, error) {
	if err := c.conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return answer{}, err
	}
	if _, err := c.conn.Write(line); err != nil {
		return answer{}, err
	}
	line, err := readLine(c.answer, maxAnswer)
	if err != nil {
		return answer{}, err
	}
	var got answer
	return got, strict(line, &got)
}

// readLine reads up to the next line feed, at most so many bytes.
func readLine(r *bufio.Reader, most int) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		if len(line)+len(part) > most {
			return nil, fmt.Errorf("line of more than %d bytes", most)
		}
		line = append(line, part...)
		if !errors.Is(err, bufio.ErrBufferFull) {
			return line, err
		}
	}
}
