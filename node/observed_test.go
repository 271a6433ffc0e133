package node

import (
	"net/netip"
	"reflect"
	"testing"

	"github.com/perigee-net/perigee/cluster/view"
)

// Whatever is other about a member is noticed.
func TestAMemberThatIsOtherInAnythingIsAnother(t *testing.T) {
	if !sameMember(view.Member{}, view.Member{}) {
		t.Error("it is not itself")
	}
	kind := reflect.TypeFor[view.Member]()
	for i := range kind.NumField() {
		var m view.Member
		switch f := reflect.ValueOf(&m).Elem().Field(i); v := f.Addr().Interface().(type) {
		case *string:
			*v = "other"
		case *bool:
			*v = true
		case *[]view.Role:
			*v = []view.Role{view.Edge}
		case *[]netip.Addr:
			*v = []netip.Addr{netip.IPv6Loopback()}
		case *netip.AddrPort:
			*v = netip.AddrPortFrom(netip.IPv6Loopback(), 1)
		default:
			t.Fatalf("%s is of a type that this test does not know", kind.Field(i).Name)
		}
		if sameMember(m, view.Member{}) {
			t.Errorf("another %s is not noticed", kind.Field(i).Name)
		}
	}
}
