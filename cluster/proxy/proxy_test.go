package proxy

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"net/netip"
	"testing"

	"github.com/pires/go-proxyproto"
)

// As bytes, by section 2.2 of the protocol's document.
func TestHeadersAreTheProtocols(t *testing.T) {
	const signature = "0d0a0d0a000d0a515549540a"
	v4, v6 := netip.MustParseAddrPort("198.51.100.7:50000"), netip.MustParseAddrPort("[2001:db8::7]:50000")
	to4, to6 := netip.MustParseAddrPort("203.0.113.1:443"), netip.MustParseAddrPort("[2001:db8::1]:443")
	for _, c := range []struct {
		client, to netip.AddrPort
		want       string
	}{
		{v4, to4, "21" + "11" + "000c" + "c6336407" + "cb007101" + "c350" + "01bb"},
		{v6, to6, "21" + "21" + "0024" + "20010db8000000000000000000000007" + "20010db8000000000000000000000001" + "c350" + "01bb"},
		{v4, to6, "21" + "21" + "0024" + "00000000000000000000ffffc6336407" + "20010db8000000000000000000000001" + "c350" + "01bb"},
		{v6, to4, "21" + "21" + "0024" + "20010db8000000000000000000000007" + "00000000000000000000ffffcb007101" + "c350" + "01bb"},
		{netip.AddrPort{}, to4, "20" + "00" + "0000"},
		{netip.AddrPort{}, netip.AddrPort{}, "20" + "00" + "0000"},
		{v4, netip.AddrPort{}, "20" + "00" + "0000"},
	} {
		got := Header(c.client, c.to)
		if hex.EncodeToString(got) != signature+c.want {
			t.Errorf("%v to %v: got %x, want %s%s", c.client, c.to, got, signature, c.want)
		}
		if _, err := proxyproto.Read(bufio.NewReader(bytes.NewReader(got))); err != nil {
			t.Errorf("%v to %v: %v", c.client, c.to, err)
		}
	}
}

func TestTheHeaderOfADatagramSaysSo(t *testing.T) {
	const signature = "0d0a0d0a000d0a515549540a"
	client, to := netip.MustParseAddrPort("198.51.100.7:50000"), netip.MustParseAddrPort("203.0.113.1:443")
	for _, c := range []struct {
		client netip.AddrPort
		want   string
	}{
		{client, "21" + "12" + "000c" + "c6336407" + "cb007101" + "c350" + "01bb"},
		{netip.MustParseAddrPort("[2001:db8::7]:50000"), "21" + "22" + "0024" + "20010db8000000000000000000000007" + "00000000000000000000ffffcb007101" + "c350" + "01bb"},
		{netip.AddrPort{}, "20" + "00" + "0000"},
	} {
		if got := DatagramHeader(c.client, to); hex.EncodeToString(got) != signature+c.want {
			t.Errorf("%v: got %x, want %s%s", c.client, got, signature, c.want)
		}
	}
}
