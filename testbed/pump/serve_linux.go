package pump

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// maxClients is how many are heard at once; others wait.
const maxClients = 16

// homeless is how often the process looks whether its socket is still there.
const homeless = time.Second

// Serve is the pump process: it carries links and obeys what is asked over a unix socket at the path socket, until ctx
// ends, it is told to quit, or its socket is gone (with the testbed's folder, or taken by another pump). It returns nil
// in all these cases; by then all links and devices are gone. The devices are made by open, which is called for one at a
// time.
//
// It makes the whole process urgent ([Urgency]), for good: it is meant to be all that the process does.
//
// A socket that a killed pump left is replaced; where one still serves, Serve fails.
func Serve(ctx context.Context, socket string, open func(namespace, device string) (*os.File, error)) error {
	return serve(ctx, socket, open, urge())
}

func serve(ctx context.Context, socket string, open func(namespace, device string) (*os.File, error), how Urgency) error {
	listener, err := listen(socket)
	if err != nil {
		return fmt.Errorf("serve pump: %w", err)
	}
	defer listener.Close()
	ours, err := os.Stat(socket)
	if err != nil {
		return fmt.Errorf("serve pump: %w", err)
	}
	pump, err := Start(Config{Seed: uint64(time.Now().UnixNano())})
	if err != nil {
		return err
	}
	defer pump.Close()

	ctx, quit := context.WithCancel(ctx)
	defer quit()
	s := &server{pump: pump, open: open, quit: quit, urgency: how}
	var all sync.WaitGroup
	defer all.Wait()
	defer quit()
	all.Go(func() { s.accept(ctx, listener, &all) })
	all.Go(func() {
		<-ctx.Done()
		listener.Close()
	})
	for tick := time.NewTicker(homeless); ; {
		select {
		case <-ctx.Done():
			tick.Stop()
			return nil
		case <-tick.C:
			if now, err := os.Stat(socket); err != nil || !os.SameFile(now, ours) {
				tick.Stop()
				listener.SetUnlinkOnClose(false) // what is there now is not ours
				return nil
			}
		}
	}
}

// listen makes the socket, in place of one that nobody serves any more.
func listen(socket string) (*net.UnixListener, error) {
	address := &net.UnixAddr{Name: socket, Net: "unix"}
	l, err := net.ListenUnix("unix", address)
	if errors.Is(err, unix.EADDRINUSE) {
		// Any other file refuses connections too.
		if is, err := os.Lstat(socket); err == nil && is.Mode().Type() != os.ModeSocket {
			return nil, fmt.Errorf("%s is there already, and no socket", socket)
		}
		if c, dialed := net.DialTimeout("unix", socket, patience); dialed == nil {
			c.Close()
			return nil, fmt.Errorf("%s: a pump serves there already", socket)
		} else if !errors.Is(dialed, unix.ECONNREFUSED) {
			return nil, fmt.Errorf("%s is there already: %w", socket, dialed)
		}
		if err := os.Remove(socket); err != nil {
			return nil, err
		}
		l, err = net.ListenUnix("unix", address)
	}
	if err != nil {
		return nil, fmt.Errorf("in %s: %w", filepath.Dir(socket), err)
	}
	if err := os.Chmod(socket, 0o600); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

type server struct {
	pump    *Pump
	open    func(namespace, device string) (*os.File, error)
	quit    func()
	urgency Urgency
	one     sync.Mutex // devices are made one at a time
}

// accept hears clients until the listener is closed.
func (s *server) accept(ctx context.Context, l net.Listener, all *sync.WaitGroup) {
	places := make(chan struct{}, maxClients)
	for {
		select {
		case places <- struct{}{}:
		case <-ctx.Done():
			return
		}
		conn, err := l.Accept()
		if ctx.Err() != nil {
			if err == nil {
				conn.Close()
			}
			return
		}
		if err != nil { // no descriptor is free: one may be in a while
			<-places
			time.Sleep(50 * time.Millisecond)
			continue
		}
		all.Go(func() {
			defer func() { <-places }()
			s.hear(ctx, conn)
		})
	}
}

// hear answers one client until it goes, or says what cannot be read as a line.
func (s *server) hear(ctx context.Context, conn net.Conn) {
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.SetReadDeadline(time.Unix(1, 0)) })()
	lines := bufio.NewReader(conn)
	for ctx.Err() == nil {
		line, err := readLine(lines, maxAsked)
		if err != nil {
			return
		}
		a, err := decodeAsk(line)
		var got answer
		if err == nil {
			got, err = s.obey(a)
		}
		if err != nil {
			got = answer{Error: err.Error()}
		}
		out, err := json.Marshal(got)
		if err != nil {
			return
		}
		conn.SetWriteDeadline(time.Now().Add(patience))
		if _, err := conn.Write(append(out, '\n')); err != nil {
			return
		}
		if a.Do == askQuit {
			s.quit()
		}
	}
}

func (s *server) obey(a ask) (answer, error) {
	switch a.Do {
	case askAdd:
		return answer{}, s.add(a)
	case askRemove:
		return answer{}, s.pump.Remove(a.Link)
	case askSet:
		return answer{}, s.pump.Set(a.Link, a.AB, a.BA)
	case askDown:
		return answer{}, s.pump.Down(a.Link, a.SilentAB, a.SilentBA)
	case askSeed:
		return answer{}, s.pump.Seed(a.Link, a.Seed)
	case askPaths:
		ab, ba, err := s.pump.Paths(a.Link)
		return answer{AB: &ab, BA: &ba}, err
	case askStats:
		return answer{Stats: s.pump.Stats(), Urgency: s.urgency}, nil
	}
	return answer{}, nil // quit: once it has been answered
}

func (s *server) add(a ask) error {
	s.one.Lock()
	defer s.one.Unlock()
	atA, err := s.open(a.A.Namespace, a.A.Name)
	if err != nil {
		return err
	}
	atB, err := s.open(a.B.Namespace, a.B.Name)
	if err != nil {
		atA.Close()
		return err
	}
	return s.pump.Add(LinkSpec{Name: a.Link, A: atA, B: atB, AB: *a.AB, BA: *a.BA})
}
