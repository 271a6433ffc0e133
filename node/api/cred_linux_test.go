package api

import (
	"context"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
)

// serveUnix serves the API at a unix socket in a folder that anybody may enter.
func serveUnix(t *testing.T, handler http.Handler) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "api")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, Socket)
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{dir, path} {
		if err := os.Chmod(p, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	server := &http.Server{Handler: handler, ErrorLog: quiet(), ConnContext: ConnContext}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		server.Serve(l)
	}()
	t.Cleanup(func() { server.Close(); <-ended })
	return dir
}

func TestTheSocketKnowsWhoDialed(t *testing.T) {
	var author string
	b := backendOf()
	b.Revoke = recordAuthor(&author)
	dir := serveUnix(t, NewServer(b, BySocket(Admin)))
	c, err := NewClient(dir, Options{Token: "reader"}) // which counts for nothing here
	if err != nil {
		t.Fatal(err)
	}
	want := nameOf(uint32(os.Getuid()))
	if _, err := c.Revoke(t.Context(), "a"); err != nil || author != want+"@socket" {
		t.Errorf("by %q, want %q: %v", author, want, err)
	}
	if os.Getuid() != 0 {
		t.Skip("only root can dial as someone else")
	}
	c, err = NewClient(dir, Options{Dial: dialAs(1000)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Revoke(t.Context(), "a"); err != nil || author != "uid 1000@socket" {
		t.Errorf("by %q: %v", author, err)
	}
}

// dialAs dials as another user, on a thread of its own that ends with it.
func dialAs(uid uintptr) func(ctx context.Context, network, address string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (conn net.Conn, err error) {
		done := make(chan struct{})
		go func() {
			defer close(done)
			runtime.LockOSThread()
			if _, _, no := syscall.RawSyscall(syscall.SYS_SETRESUID, uid, uid, uid); no != 0 {
				err = no
				return
			}
			conn, err = new(net.Dialer).DialContext(ctx, network, address)
		}()
		<-done
		return conn, err
	}
}

func TestTheSocketsRoleHoldsForAllWhoDialIt(t *testing.T) {
	dir := serveUnix(t, NewServer(backendOf(), BySocket(Read)))
	c, err := NewClient(filepath.Join(dir, Socket), Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Status(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := c.Apply(t.Context(), ApplyRequest{}); err == nil {
		t.Error("it may change the spec")
	}
}

func TestWhatIsNoSocketIsNobody(t *testing.T) {
	who := BySocket(Admin)
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	for _, conn := range []net.Conn{nil, a} {
		r, _ := http.NewRequest(http.MethodGet, "/", nil)
		if conn != nil {
			r = r.WithContext(ConnContext(context.Background(), conn))
		}
		if by, err := who(r); err == nil {
			t.Errorf("it is %v", by)
		}
	}
}
