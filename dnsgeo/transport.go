package dnsgeo

// Transport is what carries a message, as far as its answer depends on that.
type Transport uint8

// The transports of the name service.
const (
	UDP Transport = iota
	TCP
	TLS   // RFC 7858
	HTTPS // RFC 8484
	QUIC  // RFC 9250
)

// Datagram says whether a response has to fit a datagram, and may go to somebody who asked nothing: whoever asks may say that he is
// another.
func (t Transport) Datagram() bool { return t == UDP }

// Encrypted says whether others on the way see no more of a message than its length.
func (t Transport) Encrypted() bool { return t >= TLS }

// Stream says whether both ends keep the transport open as they agree on by edns-tcp-keepalive: HTTP and QUIC have means of their own.
func (t Transport) Stream() bool { return t == TCP || t == TLS }

// String is its name, as dig and logs have it.
func (t Transport) String() string { return [...]string{"udp", "tcp", "tls", "https", "quic"}[t] }
