package front

import "testing"

func TestAnycastAddressesAreSharedAndNeedNotBeThereYet(t *testing.T) {
	for network, address := range map[string]string{"tcp": "192.0.2.1:0", "tcp4": "192.0.2.1:0", "tcp6": "[2001:db8::1]:0"} {
		first, err := ListenAnycast(network, address)
		if err != nil {
			t.Errorf("%s %s: %v", network, address, err)
			continue
		}
		defer first.Close()
		second, err := ListenAnycast(network, first.Addr().String())
		if err != nil {
			t.Errorf("%s %s, again: %v", network, first.Addr(), err)
			continue
		}
		second.Close()
	}
	for network, address := range map[string]string{"udp": "192.0.2.1:0", "udp4": "192.0.2.1:0", "udp6": "[2001:db8::1]:0"} {
		first, err := ListenPacketAnycast(network, address)
		if err != nil {
			t.Errorf("%s %s: %v", network, address, err)
			continue
		}
		defer first.Close()
		second, err := ListenPacketAnycast(network, first.LocalAddr().String())
		if err != nil {
			t.Errorf("%s %s, again: %v", network, first.LocalAddr(), err)
			continue
		}
		second.Close()
	}
}
