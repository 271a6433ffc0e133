package anycast

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/osrg/gobgp/v4/pkg/packet/bgp"
)

const (
	// maxMessage bounds a message in both directions (RFC 4271, section 4.1); longer ones (RFC 8654) are not agreed to.
	maxMessage = bgp.BGP_MAX_MESSAGE_LENGTH
	headerLen  = bgp.BGP_HEADER_LENGTH
	// maxReason bounds the text of a shutdown (RFC 9003, section 2), in bytes.
	maxReason = 255
	version   = 4
)

// notice is an error that the neighbour is told of by a NOTIFICATION before the connection is closed (RFC 4271, section 6).
type notice struct {
	code, sub uint8
	data      []byte
	why       string
}

func (n *notice) Error() string { return fmt.Sprintf("%s (%d/%d)", n.why, n.code, n.sub) }

func (n *notice) message() []byte {
	// What a neighbour sent may be among the data, so it is cut; nothing of ours is as long.
	return serialized(bgp.NewBGPNotificationMessage(n.code, n.sub, n.data[:min(len(n.data), maxMessage-headerLen-2)]))
}

// malformed makes the notice of a message that breaks the protocol.
func malformed(code, sub uint8, data []byte, format string, args ...any) *notice {
	return &notice{code, sub, slices.Clone(data), fmt.Sprintf(format, args...)}
}

// shutdown is the notice of an end that was wanted on this side (RFC 9003).
func shutdown(reason string) *notice {
	text := strings.ToValidUTF8(reason, "\ufffd")
	for len(text) > maxReason {
		_, last := utf8.DecodeLastRuneInString(text)
		text = text[:len(text)-last]
	}
	why := "shut down"
	var data []byte
	if text != "" {
		why = "shut down: " + text
		data = append([]byte{byte(len(text))}, text...)
	}
	return &notice{bgp.BGP_ERROR_CEASE, bgp.BGP_ERROR_SUB_ADMINISTRATIVE_SHUTDOWN, data, why}
}

// told is an error that the neighbour told us of.
type told struct {
	code, sub uint8
	text      string // of a shutdown or reset (RFC 9003)
}

func (t *told) Error() string {
	text := ""
	if t.text != "" {
		text = fmt.Sprintf(": %q", t.text)
	}
	return fmt.Sprintf("neighbour ended the session: %v%s", bgp.NewNotificationErrorCode(t.code, t.sub), text)
}

// decodeNotification reads the body of a NOTIFICATION; it is never answered, so nothing of it is wrong (section 6.4).
func decodeNotification(body []byte) *told {
	t := &told{code: body[0], sub: body[1]}
	data := body[2:]
	reasoned := t.code == bgp.BGP_ERROR_CEASE && (t.sub == bgp.BGP_ERROR_SUB_ADMINISTRATIVE_SHUTDOWN || t.sub == bgp.BGP_ERROR_SUB_ADMINISTRATIVE_RESET)
	if reasoned && len(data) > 0 && int(data[0]) < len(data) {
		t.text = strings.ToValidUTF8(string(data[1:1+int(data[0])]), "\ufffd")
	}
	return t
}

// decodeHeader reads the header of a message: its type, and the length of its body (sections 4.1 and 6.1).
func decodeHeader(h []byte) (kind uint8, length int, wrong *notice) {
	for _, b := range h[:16] {
		if b != 0xff {
			return 0, 0, malformed(bgp.BGP_ERROR_MESSAGE_HEADER_ERROR, bgp.BGP_ERROR_SUB_CONNECTION_NOT_SYNCHRONIZED, nil, "a message without its marker")
		}
	}
	whole := int(binary.BigEndian.Uint16(h[16:18]))
	kind = h[18]
	least, most := headerLen, maxMessage
	switch kind {
	case bgp.BGP_MSG_OPEN:
		least = headerLen + 10
	case bgp.BGP_MSG_UPDATE:
		least = headerLen + 4
	case bgp.BGP_MSG_NOTIFICATION:
		least = headerLen + 2
	case bgp.BGP_MSG_KEEPALIVE:
		most = headerLen
	case bgp.BGP_MSG_ROUTE_REFRESH: // RFC 2918, section 3
		least, most = headerLen+4, headerLen+4
	default:
		return 0, 0, malformed(bgp.BGP_ERROR_MESSAGE_HEADER_ERROR, bgp.BGP_ERROR_SUB_BAD_MESSAGE_TYPE, h[18:19], "a message of unknown type %d", kind)
	}
	if whole < least || whole > most {
		return 0, 0, malformed(bgp.BGP_ERROR_MESSAGE_HEADER_ERROR, bgp.BGP_ERROR_SUB_BAD_MESSAGE_LENGTH, h[16:18], "a message of type %d with %d bytes", kind, whole)
	}
	return kind, whole - headerLen, nil
}

// reader reads messages, into memory that it uses again.
type reader struct {
	from   io.Reader
	header [headerLen]byte
	body   [maxMessage - headerLen]byte
}

// next reads one message. Its body is valid until the next one is read.
func (r *reader) next() (kind uint8, body []byte, err error) {
	if _, err := io.ReadFull(r.from, r.header[:]); err != nil {
		return 0, nil, err
	}
	kind, length, wrong := decodeHeader(r.header[:])
	if wrong != nil {
		return 0, nil, wrong
	}
	body = r.body[:length]
	if _, err := io.ReadFull(r.from, body); err != nil {
		return 0, nil, err
	}
	return kind, body, nil
}

// checkUpdate looks whether the parts of an UPDATE fit into it (section 6.3). What is in them does not matter: nothing
// of it is used, which is what RFC 7606 asks for most mistakes in it.
func checkUpdate(body []byte) *notice {
	withdrawn := int(binary.BigEndian.Uint16(body))
	if withdrawn+4 <= len(body) {
		attributes := int(binary.BigEndian.Uint16(body[2+withdrawn:]))
		if withdrawn+4+attributes <= len(body) {
			return nil
		}
	}
	return malformed(bgp.BGP_ERROR_UPDATE_MESSAGE_ERROR, bgp.BGP_ERROR_SUB_MALFORMED_ATTRIBUTE_LIST, nil, "an UPDATE whose parts are longer than itself")
}

// decodeRefresh reads which family a ROUTE-REFRESH asks for; 0: none that is ours (RFC 2918, section 4; what is not
// plain, as in RFC 7313, was not agreed to and is ignored).
func decodeRefresh(body []byte) bgp.Family {
	family := bgp.NewFamily(binary.BigEndian.Uint16(body), body[3])
	if body[2] != 0 || family != bgp.RF_IPv4_UC && family != bgp.RF_IPv6_UC {
		return 0
	}
	return family
}

// openMessage is this side's OPEN. Without capabilities only IPv4 and AS numbers of two octets can be agreed on.
func openMessage(c Config, n Neighbor, capable bool) []byte {
	var parameters []bgp.OptionParameterInterface
	if capable {
		parameters = append(parameters, bgp.NewOptionParameterCapability([]bgp.ParameterCapabilityInterface{
			bgp.NewCapMultiProtocol(bgp.RF_IPv4_UC),
			bgp.NewCapMultiProtocol(bgp.RF_IPv6_UC),
			bgp.NewCapRouteRefresh(),
			bgp.NewCapFourOctetASNumber(c.AS),
		}))
	}
	m, _ := bgp.NewBGPOpenMessage(twoOctets(c.AS), uint16(n.HoldTime/time.Second), c.RouterID, parameters) // fails if the router id is not IPv4: Open asks
	return serialized(m)
}

// twoOctets is an AS number where there is no more room (RFC 6793, section 4.2.2).
func twoOctets(as uint32) uint16 {
	if as > math.MaxUint16 {
		return transAS
	}
	return uint16(as)
}

// terms is what two OPENs agree on.
type terms struct {
	as         uint32 // this side's
	internal   bool
	fourOctets bool // AS numbers
	v4, v6     bool // the families the neighbour takes
	hold       time.Duration
	next4      netip.Addr // next hops of routes that name none; invalid: there is none
	next6      netip.Addr
}

// judgeOpen reads the body of a neighbour's OPEN and says what is agreed, or what is wrong with it (sections 4.2 and 6.2;
// RFC 6286; RFC 5492, section 3).
func judgeOpen(c Config, n Neighbor, capable bool, body []byte) (terms, *notice) {
	wrong := func(sub uint8, data []byte, format string, args ...any) (terms, *notice) {
		return terms{}, malformed(bgp.BGP_ERROR_OPEN_MESSAGE_ERROR, sub, data, format, args...)
	}
	if body[0] != version {
		return wrong(bgp.BGP_ERROR_SUB_UNSUPPORTED_VERSION_NUMBER, []byte{0, version}, "neighbour speaks version %d", body[0])
	}
	var open bgp.BGPOpen
	if err := open.DecodeFromBytes(body); err != nil {
		return wrong(0, nil, "an OPEN that cannot be read: %v", err)
	}
	said := readOpen(&open)
	switch {
	case said.as != n.AS:
		return wrong(bgp.BGP_ERROR_SUB_BAD_PEER_AS, nil, "neighbour is AS %d, not %d", said.as, n.AS)
	case open.ID.IsUnspecified(), n.AS == c.AS && open.ID == c.RouterID:
		return wrong(bgp.BGP_ERROR_SUB_BAD_BGP_IDENTIFIER, nil, "neighbour's router id is %v", open.ID)
	case said.unknown:
		return wrong(bgp.BGP_ERROR_SUB_UNSUPPORTED_OPTIONAL_PARAMETER, nil, "an OPEN with a parameter that is not known")
	case time.Duration(open.HoldTime)*time.Second < MinHoldTime:
		// 0 asks for none, and may be refused: a router that restarts in silence would never be told again.
		return wrong(bgp.BGP_ERROR_SUB_UNACCEPTABLE_HOLD_TIME, nil, "neighbour's hold time is %d s: less than %v", open.HoldTime, MinHoldTime)
	}
	t := terms{
		as: c.AS, internal: n.AS == c.AS, hold: min(n.HoldTime, time.Duration(open.HoldTime)*time.Second),
		fourOctets: capable && said.fourOctets, v4: said.v4 || !said.multiprotocol || !capable, v6: capable && said.v6,
	}
	if !t.v4 && !t.v6 {
		ours := bgp.NewCapMultiProtocol(bgp.RF_IPv4_UC)
		data, _ := ours.Serialize() // fails never: a capability of fixed length
		return wrong(bgp.BGP_ERROR_SUB_UNSUPPORTED_CAPABILITY, data, "neighbour takes neither IPv4 nor IPv6 unicast")
	}
	return t, nil
}

// opened is what a neighbour's OPEN says.
type opened struct {
	as                    uint32
	fourOctets            bool
	multiprotocol, v4, v6 bool
	unknown               bool // a parameter that is not of capabilities
}

func readOpen(open *bgp.BGPOpen) opened {
	said := opened{as: uint32(open.MyAS)}
	for _, p := range open.OptParams {
		capabilities, ok := p.(*bgp.OptionParameterCapability)
		if !ok {
			said.unknown = true
			continue
		}
		for _, c := range capabilities.Capability {
			switch c := c.(type) {
			case *bgp.CapFourOctetASNumber:
				said.as, said.fourOctets = c.CapValue, true
			case *bgp.CapMultiProtocol:
				said.multiprotocol = true
				said.v4 = said.v4 || c.CapValue == bgp.RF_IPv4_UC
				said.v6 = said.v6 || c.CapValue == bgp.RF_IPv6_UC
			}
		}
	}
	return said
}

// takes says what of a table a neighbour can be told, with the next hops of its session.
func (t terms) takes(all map[netip.Prefix]path) (want map[netip.Prefix]path, unsent int) {
	want = make(map[netip.Prefix]path, len(all))
	for prefix, p := range all {
		taken, next := t.v4, t.next4
		if prefix.Addr().Is6() {
			taken, next = t.v6, t.next6
		}
		if !p.nextHop.IsValid() {
			p.nextHop = next
		}
		if !taken || !p.nextHop.IsValid() {
			unsent++
			continue
		}
		want[prefix] = p
	}
	return want, unsent
}

// What a message has beside prefixes, and what a prefix takes at most, in bytes. MP_REACH_NLRI and MP_UNREACH_NLRI are
// those of RFC 4760, sections 3 and 4, with a length of two octets.
const (
	updateLen  = headerLen + 2 + 2
	reachLen   = 4 + 2 + 1 + 1 + 16 + 1
	unreachLen = 4 + 2 + 1
	prefix4Len = 1 + 4
	prefix6Len = 1 + 16
)

// updates are the messages that take back what is gone and tell what is fresh, as few as can be.
func (t terms) updates(gone []netip.Prefix, fresh []group) [][]byte {
	var messages [][]byte
	send := func(withdrawn []bgp.PathNLRI, attributes []bgp.PathAttributeInterface, nlri []bgp.PathNLRI) {
		messages = append(messages, serialized(bgp.NewBGPUpdateMessage(withdrawn, attributes, nlri)))
	}
	six := slices.IndexFunc(gone, func(p netip.Prefix) bool { return p.Addr().Is6() })
	if six < 0 {
		six = len(gone) // IPv4 comes first
	}
	for some := range slices.Chunk(gone[:six], (maxMessage-updateLen)/prefix4Len) {
		send(nlri(some), nil, nil)
	}
	for some := range slices.Chunk(gone[six:], (maxMessage-updateLen-unreachLen)/prefix6Len) {
		unreach, _ := bgp.NewPathAttributeMpUnreachNLRI(bgp.RF_IPv6_UC, nlri(some)) // returns no error
		send(nil, []bgp.PathAttributeInterface{unreach}, nil)
	}
	for _, g := range fresh {
		attributes, length := t.attributes(g.path)
		room := maxMessage - updateLen - length
		if g.prefixes[0].Addr().Is4() {
			for some := range slices.Chunk(g.prefixes, room/prefix4Len) {
				send(nil, attributes, nlri(some))
			}
			continue
		}
		for some := range slices.Chunk(g.prefixes, (room-reachLen)/prefix6Len) {
			reach, _ := bgp.NewPathAttributeMpReachNLRI(bgp.RF_IPv6_UC, nlri(some), g.nextHop) // fails without prefixes: a chunk has some
			// The first of all, so that a neighbour that stumbles over another one knows what it is of (RFC 7606, section 5.1).
			send(nil, append([]bgp.PathAttributeInterface{reach}, attributes...), nil)
		}
	}
	return messages
}

// attributes are what is said of a path, prefixes apart, in the order of their types (section 5), and their length.
func (t terms) attributes(p path) (attributes []bgp.PathAttributeInterface, length int) {
	attributes = append(attributes, bgp.NewPathAttributeOrigin(bgp.BGP_ORIGIN_ATTR_TYPE_IGP))
	var through []bgp.AsPathParamInterface // an internal neighbour is told of no AS: ours is its own
	switch {
	case t.internal:
	case t.fourOctets:
		through = append(through, bgp.NewAs4PathParam(bgp.BGP_ASPATH_ATTR_TYPE_SEQ, []uint32{t.as}))
	default:
		through = append(through, bgp.NewAsPathParam(bgp.BGP_ASPATH_ATTR_TYPE_SEQ, []uint16{twoOctets(t.as)}))
	}
	attributes = append(attributes, bgp.NewPathAttributeAsPath(through))
	if p.nextHop.Is4() {
		next, _ := bgp.NewPathAttributeNextHop(p.nextHop) // fails without an address: takes left such out
		attributes = append(attributes, next)
	}
	if p.hasMED {
		attributes = append(attributes, bgp.NewPathAttributeMultiExitDisc(p.med))
	}
	if t.internal {
		preference := uint32(100) // the usual one
		if p.graceful {
			preference = 0 // RFC 8326, section 4.1
		}
		attributes = append(attributes, bgp.NewPathAttributeLocalPref(preference))
	}
	if p.communities != "" {
		var values []uint32
		for c := range slices.Chunk([]byte(p.communities), 4) {
			values = append(values, binary.BigEndian.Uint32(c))
		}
		attributes = append(attributes, bgp.NewPathAttributeCommunities(values))
	}
	if !t.internal && !t.fourOctets && t.as > math.MaxUint16 {
		// The AS that two octets could not say (RFC 6793, section 4.2.2).
		attributes = append(attributes, bgp.NewPathAttributeAs4Path([]*bgp.As4PathParam{bgp.NewAs4PathParam(bgp.BGP_ASPATH_ATTR_TYPE_SEQ, []uint32{t.as})}))
	}
	for _, a := range attributes {
		length += a.Len()
	}
	return attributes, length
}

func nlri(prefixes []netip.Prefix) []bgp.PathNLRI {
	out := make([]bgp.PathNLRI, len(prefixes))
	for i, p := range prefixes {
		n, _ := bgp.NewIPAddrPrefix(p) // fails for no prefix: compile left such out
		out[i].NLRI = n
	}
	return out
}

// serialized is a message of ours as bytes. It fails for one that is too long, and ours are made to fit.
func serialized(m *bgp.BGPMessage) []byte {
	b, err := m.Serialize()
	if err != nil {
		panic(fmt.Sprintf("anycast: a message of our own: %v", err))
	}
	return b
}

// refusesCapabilities says whether a neighbour ended a session because it knows no capabilities at all (RFC 5492, section 3).
func refusesCapabilities(err error) bool {
	var t *told
	return errors.As(err, &t) && t.code == bgp.BGP_ERROR_OPEN_MESSAGE_ERROR && t.sub == bgp.BGP_ERROR_SUB_UNSUPPORTED_OPTIONAL_PARAMETER
}
