package flowlog

import (
	"encoding/json"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// Entry is what one direction of a flow carried in a capture window.
type Entry struct {
	Accelerator string
	Client      netip.AddrPort
	// Local is the address and port of the accelerator that the client reached.
	Local netip.AddrPort
	// Endpoint is where the flow ends, as origin knows it (targetGroup/web), and EndpointAddr its address; invalid where that is for the
	// endpoint's region to choose.
	Endpoint     string
	EndpointAddr netip.AddrPort
	// Region is the endpoint's; "": no endpoint took the flow.
	Region string
	POP    string
	// Protocol is TCP or UDP.
	Protocol string
	// Out is to the client, else from it.
	Out bool
	// Packets of the client's connection; negative: not known.
	Packets int64
	// Bytes that the direction carried, without headers.
	Bytes      int64
	Start, End time.Time // of the window
	// Rejected is why the flow was refused: "" it was taken.
	Rejected string
	// Skipped says that entries before this one were dropped.
	Skipped bool

	// What follows is in JSON only.
	Node string // that took the flow
	To   string // the node that dials the endpoint
	By   string // the node that carries the flow on to that; "": none
	// RTT is the client's round trip, and Retransmitted the segments that were sent to it again since the flow began; of TCP, where the kernel tells.
	RTT           time.Duration
	Retransmitted uint64
	// Began is when the flow did.
	Began time.Time
	// Ended is how: "": it goes on.
	Ended string
	Rate  float64 // of how many flows one was written: 1, of each
}

// version is that of Global Accelerator's records with the field vpc_id.
const version = "2.0"

// AppendAWS appends the record that Global Accelerator would write: version, account, accelerator, client address and port, accelerator address and
// port, endpoint address and port, protocol, address type, packets, bytes, start, end, action, log status, source address and port, endpoint region,
// edge location, direction, VPC and reject reason, by spaces apart, "-" for what does not apply.
func (e *Entry) AppendAWS(b []byte) []byte {
	b = append(b, version+" - "...)
	b = append(b, e.Accelerator...)
	for _, a := range [...]netip.AddrPort{e.Client, e.Local, e.EndpointAddr} {
		if !a.IsValid() {
			b = append(b, " - -"...)
			continue
		}
		b = a.Addr().AppendTo(append(b, ' '))
		b = strconv.AppendUint(append(b, ' '), uint64(a.Port()), 10)
	}
	b = append(append(b, ' '), e.Protocol...)
	b = append(append(b, ' '), e.addressType()...)
	if e.Packets < 0 {
		b = append(b, " -"...)
	} else {
		b = strconv.AppendInt(append(b, ' '), e.Packets, 10)
	}
	for _, n := range [...]int64{e.Bytes, e.Start.Unix(), e.End.Unix()} {
		b = strconv.AppendInt(append(b, ' '), n, 10)
	}
	b = append(append(b, ' '), e.action()...)
	b = append(append(b, ' '), e.status()...)
	b = append(b, " - -"...)
	for _, text := range [...]string{e.Region, e.POP, e.direction(), "", e.Rejected} {
		if text == "" {
			text = "-"
		}
		b = append(append(b, ' '), text...)
	}
	return append(b, '\n')
}

func (e *Entry) addressType() string {
	if e.Local.Addr().Is4() {
		return "IPV4"
	}
	return "IPV6"
}

func (e *Entry) action() string {
	if e.Rejected != "" {
		return "REJECT"
	}
	return "ACCEPT"
}

func (e *Entry) status() string {
	if e.Skipped {
		return "SKIPDATA"
	}
	return "OK"
}

func (e *Entry) direction() string {
	if e.Out {
		return "EGRESS"
	}
	return "INGRESS"
}

// record is an entry as JSON.
type record struct {
	Version         string   `json:"version"`
	Accelerator     string   `json:"accelerator"`
	Client          string   `json:"client"`
	ClientPort      uint16   `json:"clientPort"`
	Address         string   `json:"acceleratorIP"`
	Port            uint16   `json:"acceleratorPort"`
	Endpoint        string   `json:"endpoint,omitempty"`
	EndpointAddress string   `json:"endpointIP,omitempty"`
	EndpointPort    uint16   `json:"endpointPort,omitempty"`
	Protocol        string   `json:"protocol"`
	AddressType     string   `json:"ipAddressType"`
	Packets         *int64   `json:"packets,omitempty"`
	Bytes           int64    `json:"bytes"`
	Start           string   `json:"start"`
	End             string   `json:"end"`
	Action          string   `json:"action"`
	Status          string   `json:"logStatus"`
	Region          string   `json:"endpointRegion,omitempty"`
	POP             string   `json:"pop"`
	Direction       string   `json:"direction"`
	Rejected        string   `json:"rejectReason,omitempty"`
	Node            string   `json:"node"`
	To              string   `json:"to,omitempty"`
	By              string   `json:"by,omitempty"`
	RTT             *float64 `json:"rttMilliseconds,omitempty"`
	Retransmitted   *uint64  `json:"retransmitted,omitempty"`
	Began           string   `json:"began"`
	Ended           string   `json:"ended,omitempty"`
	Rate            float64  `json:"sampleRate"`
}

const timeForm = "2006-01-02T15:04:05.000Z"

// AppendJSON appends an object and a newline.
func (e *Entry) AppendJSON(b []byte) []byte {
	r := record{
		Version: version, Accelerator: e.Accelerator, Client: e.Client.Addr().String(), ClientPort: e.Client.Port(),
		Address: e.Local.Addr().String(), Port: e.Local.Port(), Endpoint: e.Endpoint, Protocol: e.Protocol, AddressType: e.addressType(), Bytes: e.Bytes,
		Start: e.Start.UTC().Format(timeForm), End: e.End.UTC().Format(timeForm), Action: e.action(), Status: e.status(),
		Region: e.Region, POP: e.POP, Direction: e.direction(), Rejected: e.Rejected, Node: e.Node, To: e.To, By: e.By,
		Began: e.Began.UTC().Format(timeForm), Ended: e.Ended, Rate: e.Rate,
	}
	if e.EndpointAddr.IsValid() {
		r.EndpointAddress, r.EndpointPort = e.EndpointAddr.Addr().String(), e.EndpointAddr.Port()
	}
	if e.Packets >= 0 {
		r.Packets = &e.Packets
	}
	if e.RTT > 0 {
		r.RTT, r.Retransmitted = new(float64(e.RTT.Microseconds())/1000), &e.Retransmitted
	}
	data, err := json.Marshal(r)
	if err != nil {
		return b // a number that JSON has not: no rate is one
	}
	return append(append(b, data...), '\n')
}

// EndpointAddr is the address in a resource that is an endpoint given by address, as origin knows it: endpoint/<accelerator>/<address>:<port>.
func EndpointAddr(resource string) netip.AddrPort {
	rest, is := strings.CutPrefix(resource, "endpoint/")
	_, at, _ := strings.Cut(rest, "/")
	if a, err := netip.ParseAddrPort(at); is && err == nil {
		return a
	}
	return netip.AddrPort{}
}
