package backbone

import (
	"net"
	"testing"
	"time"
)

// What the kernel tells of a connection that is well: idle, or with a reader who does not read, it is not unanswered.
func TestWhoDoesNotReadIsNotSilent(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	near, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	far, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	for _, c := range []net.Conn{near, far} {
		tune(c)
		if since, unanswered := silence(c); unanswered || since > time.Minute {
			t.Errorf("at once: %v, %v", since, unanswered)
		}
	}
	near.SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
	for err == nil { // until the windows are full
		_, err = near.Write(make([]byte, 1<<20))
	}
	for _, c := range []net.Conn{near, far} {
		if _, unanswered := silence(c); unanswered {
			t.Error("a reader who does not read is taken for a path that is lost")
		}
	}
	near.Close()
	if since, unanswered := silence(near); since != 0 || unanswered {
		t.Errorf("of one that is closed: %v, %v", since, unanswered)
	}
}
