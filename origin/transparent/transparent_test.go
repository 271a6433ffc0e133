package transparent

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"
)

func TestWhatCannotBeDialledSaysWhy(t *testing.T) {
	for _, c := range []struct{ client, to, want string }{
		{"", "10.0.0.1:80", "it is not known"},
		{"[2001:db8::7]:40000", "10.0.0.1:80", "2001:db8::7 and 10.0.0.1 are of two families"},
		{"203.0.113.7:40000", "[fd00::1]:80", "203.0.113.7 and fd00::1 are of two families"},
		{"127.0.0.1:40000", "10.0.0.1:80", "127.0.0.1 is nobody's to the world"},
		{"224.0.0.1:40000", "10.0.0.1:80", "224.0.0.1 is nobody's to the world"},
		{"0.0.0.0:40000", "10.0.0.1:80", "0.0.0.0 is nobody's to the world"},
		{"255.255.255.255:40000", "10.0.0.1:80", "255.255.255.255 is nobody's to the world"},
		{"169.254.169.254:40000", "10.0.0.1:80", "169.254.169.254 is nobody's to the world"},
		{"[fe80::1%eth0]:40000", "[fd00::1]:80", "fe80::1 is nobody's to the world"},
		{"10.0.0.1:40000", "10.0.0.1:80", "10.0.0.1 is the target's own"},
	} {
		client, _ := netip.ParseAddrPort(c.client)
		for _, network := range []string{"tcp", "udp"} {
			_, err := Dialer{}.Dial(context.Background(), network, client, c.to)
			if !errors.Is(err, ErrImpossible) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s to %s by %s: %v", c.client, c.to, network, err)
			}
		}
	}
	if _, err := (Dialer{}).Dial(context.Background(), "tcp", netip.MustParseAddrPort("203.0.113.7:1"), "nowhere"); err == nil {
		t.Error("it dials nowhere")
	}
}
