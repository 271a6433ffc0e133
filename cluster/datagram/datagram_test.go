//go:build linux

package datagram

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func listening(t *testing.T, network, address string) (*Socket, net.PacketConn) {
	t.Helper()
	conn, err := net.ListenPacket(network, address)
	if err != nil {
		t.Fatal(err)
	}
	s, err := Listening(conn)
	if err != nil {
		t.Fatal(err)
	}
	return s, conn
}

func dialled(t *testing.T, to string) (*Socket, net.Conn) {
	t.Helper()
	conn, err := net.Dial("udp", to)
	if err != nil {
		t.Fatal(err)
	}
	s, err := Dialled(conn)
	if err != nil {
		t.Fatal(err)
	}
	return s, conn
}

// plain hides what a socket is, so that it is read and written one datagram at a time.
type plain struct{ net.PacketConn }

// serving serves a socket until the test ends.
func serving(t *testing.T, s *Socket, handle func([]Datagram), refused func()) {
	t.Helper()
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(handle, refused) }()
	t.Cleanup(func() {
		s.Close()
		if err := <-ended; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
}

// What is sent is what comes back, of all lengths, from the address that was asked, whatever the kernel put together on the way.
func TestDatagramsComeAsTheyWereSent(t *testing.T) {
	for _, test := range []struct{ name, network, address, to string }{
		{"IPv4", "udp4", "127.0.0.1:0", "127.0.0.1"},
		{"IPv6", "udp6", "[::1]:0", "::1"},
		{"all addresses of IPv4", "udp4", ":0", "127.0.0.2"},
		{"all addresses", "udp", ":0", "127.0.0.2"},
		{"one at a time", "", "127.0.0.1:0", "127.0.0.1"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var server *Socket
			var conn net.PacketConn
			if test.network == "" {
				var err error
				if conn, err = net.ListenPacket("udp4", test.address); err != nil {
					t.Fatal(err)
				}
				if server, err = Listening(plain{conn}); err != nil {
					t.Fatal(err)
				}
			} else {
				server, conn = listening(t, test.network, test.address)
			}
			var most atomic.Int64
			serving(t, server, func(in []Datagram) {
				most.Store(max(most.Load(), int64(len(in))))
				for _, d := range in { // one of one client: all go back
					if n, err := server.Send(Way{To: d.From, From: d.At, Head: []byte("re:")}, [][]byte{d.Data}); n != 1 || err != nil {
						t.Errorf("answer: %d, %v", n, err)
					}
				}
			}, nil)
			client, _ := dialled(t, net.JoinHostPort(test.to, fmt.Sprint(conn.LocalAddr().(*net.UDPAddr).Port)))
			got := make(chan string, 256)
			serving(t, client, func(in []Datagram) {
				for _, d := range in {
					got <- string(d.Data)
				}
			}, nil)
			var all [][]byte
			var want []string
			for i, size := range []int{8, 8, 8, 3, 0, 1200, 1200, 1200, 900, 1472, 1473, 60_000, 60_000, 65_504, 5} {
				p := []byte(strings.Repeat(string(rune('a'+i)), size))
				all = append(all, p)
				want = append(want, "re:"+string(p))
			}
			if n, err := client.Send(Way{}, all); n != len(all) || err != nil {
				t.Fatalf("sent %d of %d: %v", n, len(all), err)
			}
			var came []string
			for range want {
				select {
				case p := <-got:
					came = append(came, p)
				case <-time.After(10 * time.Second):
					t.Fatalf("%d of %d came", len(came), len(want))
				}
			}
			if !slices.Equal(came, want) { // in order, on loopback
				t.Errorf("came %.20q", came)
			}
		})
	}
}

func TestManyOfOneLengthGoTogether(t *testing.T) {
	server, conn := listening(t, "udp4", "127.0.0.1:0")
	defer server.Discard()
	client, _ := dialled(t, conn.LocalAddr().String())
	defer client.Discard()
	if server.kernel == nil || !server.kernel.cuts.Load() {
		t.Skip("this kernel cuts no datagrams")
	}
	var all [][]byte
	for range 100 {
		all = append(all, bytes.Repeat([]byte("x"), 100))
	}
	w := writers.Get().(*writer)
	w.k, w.way, w.all, w.apart = client.kernel, Way{}, all, false
	if n := w.pack(); n != 2 || w.counts[0] != maxCut || w.counts[1] != 100-maxCut {
		t.Errorf("%d messages, of %v", n, w.counts[:n])
	}
	w.apart = true
	if n := w.pack(); n != batchSize {
		t.Errorf("%d messages where none go together", n)
	}
}

// Of a socket that is dialled it is not told who has sent, and of others it is told of all, whoever has read before.
func TestWhoHasSentIsToldWhateverWasReadBefore(t *testing.T) {
	server, conn := listening(t, "udp4", "127.0.0.1:0")
	at := conn.LocalAddr().String()
	came := make(chan netip.AddrPort, 4*batchSize)
	serving(t, server, func(in []Datagram) {
		for _, d := range in {
			server.Send(Way{To: d.From}, [][]byte{d.Data})
			came <- d.From
		}
	}, nil)
	all := make([][]byte, batchSize/2)
	for i := range all {
		all[i] = make([]byte, i) // each comes by itself
	}
	for range 8 {
		client, c := dialled(t, at)
		back := make(chan netip.AddrPort, 4*batchSize)
		serving(t, client, func(in []Datagram) {
			for _, d := range in {
				back <- d.From
			}
		}, nil)
		if n, err := client.Send(Way{}, all); n != len(all) || err != nil {
			t.Fatalf("sent %d, %v", n, err)
		}
		for range all {
			if from := <-came; from != c.LocalAddr().(*net.UDPAddr).AddrPort() {
				t.Fatalf("it is told to be from %v", from)
			}
			if from := <-back; from.IsValid() {
				t.Fatalf("of a dialled socket %v is told", from)
			}
		}
	}
}

// What the system does not take costs those beside it nothing.
func TestWhatIsTooLargeIsSaid(t *testing.T) {
	server, conn := listening(t, "udp4", "127.0.0.1:0")
	came := make(chan int, 8)
	serving(t, server, func(in []Datagram) {
		for _, d := range in {
			came <- len(d.Data)
		}
	}, nil)
	client, _ := dialled(t, conn.LocalAddr().String())
	defer client.Discard()
	n, err := client.Send(Way{}, [][]byte{make([]byte, 10), make([]byte, MaxSize+1), make([]byte, 20)})
	if n != 2 || err == nil {
		t.Errorf("sent %d, %v", n, err)
	}
	if a, b := <-came, <-came; a != 10 || b != 20 {
		t.Errorf("came %d, %d", a, b)
	}
}

func TestADialledSocketHearsThatNobodyListens(t *testing.T) {
	server, conn := listening(t, "udp4", "127.0.0.1:0")
	at := conn.LocalAddr().String()
	server.Discard()
	client, _ := dialled(t, at)
	refused := make(chan bool, 16)
	serving(t, client, func([]Datagram) { t.Error("something came") }, func() { refused <- true })
	client.Send(Way{}, [][]byte{[]byte("x")})
	select {
	case <-refused:
	case <-time.After(10 * time.Second):
		t.Fatal("nothing was said")
	}
	for range 100 { // the error of an earlier one keeps none from going
		if n, err := client.Send(Way{}, [][]byte{[]byte("x")}); n != 1 || err != nil && !errors.Is(err, ErrRefused) {
			t.Fatalf("sent %d: %v", n, err)
		}
	}
}

func TestASocketIsClosedFromWhereItIsServed(t *testing.T) {
	server, conn := listening(t, "udp4", "127.0.0.1:0")
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(func([]Datagram) { server.Close() }, nil) }()
	client, _ := dialled(t, conn.LocalAddr().String())
	defer client.Discard()
	client.Send(Way{}, [][]byte{[]byte("x")})
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if _, err := conn.WriteTo([]byte("x"), net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:9"))); !errors.Is(err, net.ErrClosed) {
		t.Errorf("it is still open: %v", err)
	}
}

// A socket that is never empty can be closed all the same, by whoever has it: a flood is no reason to stay.
func TestASocketThatIsFloodedIsClosed(t *testing.T) {
	s, conn := listening(t, "udp4", "127.0.0.1:0")
	client, _ := dialled(t, conn.LocalAddr().String())
	defer client.Discard()
	batch := make([][]byte, 2*batchSize)
	for i := range batch {
		batch[i] = fmt.Append(nil, i, strings.Repeat("x", i)) // of many lengths, so that each comes by itself
	}
	var over atomic.Bool
	came, ended := make(chan struct{}, 1), make(chan error, 1)
	go func() {
		ended <- s.Serve(func([]Datagram) {
			select {
			case came <- struct{}{}:
			default:
			}
			if !over.Load() {
				client.Send(Way{}, batch)
			}
		}, nil)
	}()
	client.Send(Way{}, batch)
	<-came
	closed := make(chan struct{})
	go func() {
		conn.Close()
		close(closed)
	}()
	select {
	case <-closed:
	case <-time.After(2 * time.Second):
		t.Error("it cannot be closed")
		over.Store(true)
	}
	if err := <-ended; !errors.Is(err, net.ErrClosed) {
		t.Errorf("serve: %v", err)
	}
}
