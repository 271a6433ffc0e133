package http1

import (
	"net/netip"
	"testing"
)

func TestAClientIsAnAddressOrWhatIsHadWithOne(t *testing.T) {
	for of, want := range map[string]string{
		"192.0.2.1": "192.0.2.1", "::ffff:192.0.2.1": "192.0.2.1", "2001:db8::1": "2001:db8::", "2001:db8:0:1:2::3": "2001:db8:0:1::", "fe80::1%eth0": "fe80::",
		"127.0.0.1": "", "::ffff:127.0.0.1": "", "::1": "",
	} {
		got := ClientOf(netip.MustParseAddr(of))
		if want == "" && got.IsValid() || want != "" && got != netip.MustParseAddr(want) {
			t.Errorf("%s is %v, want %q", of, got, want)
		}
	}
	if ClientOf(netip.Addr{}).IsValid() {
		t.Error("no address is a client")
	}
}
