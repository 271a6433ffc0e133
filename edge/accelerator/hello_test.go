package accelerator

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"io"
	"net"
	"testing"
	"time"
)

// helloOf is the ClientHello that crypto/tls sends.
func helloOf(t testing.TB, c *tls.Config) []byte {
	t.Helper()
	near, far := net.Pipe()
	go func() {
		tls.Client(near, c).Handshake()
		near.Close()
	}()
	defer far.Close()
	far.SetReadDeadline(time.Now().Add(10 * time.Second))
	head := make([]byte, 5)
	if _, err := io.ReadFull(far, head); err != nil {
		t.Fatal(err)
	}
	body := make([]byte, binary.BigEndian.Uint16(head[3:]))
	if _, err := io.ReadFull(far, body); err != nil {
		t.Fatal(err)
	}
	return append(head, body...)
}

// records has a message go in records of so many bytes, the last one of what is left.
func records(message []byte, sizes ...int) (b []byte) {
	for i := 0; len(message) > 0; i++ {
		n := len(message)
		if i < len(sizes) {
			n = min(n, sizes[i])
		}
		b = append(b, tlsHandshake, 3, 1, byte(n>>8), byte(n))
		b = append(b, message[:n]...)
		message = message[n:]
	}
	return b
}

// withExtension is a ClientHello in one record with one more extension, which is the last.
func withExtension(hello []byte, number uint16, data []byte) []byte {
	m := bytes.Clone(hello[5:])
	at := 4 + 2 + 32
	at += 1 + int(m[at])
	at += 2 + int(binary.BigEndian.Uint16(m[at:]))
	at += 1 + int(m[at])
	m = binary.BigEndian.AppendUint16(m, number)
	m = binary.BigEndian.AppendUint16(m, uint16(len(data)))
	m = append(m, data...)
	binary.BigEndian.PutUint16(m[at:], uint16(len(m)-at-2))
	whole := len(m) - 4
	m[1], m[2], m[3] = byte(whole>>16), byte(whole>>8), byte(whole)
	return records(m)
}

func TestAClientHelloIsKnownByAllThatItIs(t *testing.T) {
	hello := helloOf(t, &tls.Config{ServerName: "www.example.com", NextProtos: []string{"h2", "http/1.1"}})
	old := helloOf(t, &tls.Config{ServerName: "www.example.com", MaxVersion: tls.VersionTLS12})
	bare := append([]byte{tlsClientHello, 0, 0, 41, 3, 1}, make([]byte, 32)...) // as before there were extensions
	bare = append(bare, 0, 0, 2, 0, 0x2f, 1, 0)
	change := func(b []byte, at int, to byte) []byte {
		b = bytes.Clone(b)
		b[at] = to
		return b
	}
	for _, c := range []struct {
		name string
		b    []byte
		want helloVerdict
	}{
		{"TLS 1.3", hello, harmless},
		{"TLS 1.2", old, harmless},
		{"without extensions", records(bare), harmless},
		{"a ticket", withExtension(hello, 41, make([]byte, 100)), harmless},
		{"early data", withExtension(hello, tlsEarlyData, nil), significant},
		{"in two records", records(hello[5:], 100), harmless},
		{"in as many records as may be", records(hello[5:], 1, 1, 1, 1, 1, 1, 1), harmless},
		{"in more", records(hello[5:], 1, 1, 1, 1, 1, 1, 1, 1), significant},
		{"early data, in two records", records(withExtension(hello, tlsEarlyData, nil)[5:], 3), significant},
		{"nothing", nil, undecided},
		{"a part", hello[:len(hello)-1], undecided},
		{"more than it", append(bytes.Clone(hello), tlsHandshake), significant},
		{"more in its record", records(append(bytes.Clone(hello[5:]), 1, 2)), significant},
		{"a change of cipher specs behind it", append(bytes.Clone(hello), 20, 3, 3, 0, 1, 1), significant},
		{"HTTP", []byte("GET / HTTP/1.1\r\n"), significant},
		{"SSH", []byte("S"), significant},
		{"another record", change(hello, 0, 23), significant},
		{"another version of records", change(hello, 1, 2), significant},
		{"another message", change(hello, 5, 2), significant},
		{"an empty record", []byte{tlsHandshake, 3, 1, 0, 0}, significant},
		{"a record that is too long", []byte{tlsHandshake, 3, 1, 0x40, 1}, significant},
		{"a message that is too long", []byte{tlsHandshake, 3, 1, 0x40, 0, tlsClientHello, 0, 0x40, 0}, significant},
		{"a message shorter than its record", []byte{tlsHandshake, 3, 1, 0x40, 0, tlsClientHello, 0, 1, 0}, significant},
		{"another version", change(hello, 9, 2), significant},
		{"a session that is too long", change(hello, 43, 33), significant},
		{"an extension that is too long", withExtension(hello[:len(hello)-1], 99, []byte{1}), significant},
	} {
		if got := judge(c.b); got != c.want {
			t.Errorf("%s: %d, want %d", c.name, got, c.want)
		}
	}
}

// What is a ClientHello is none while a byte is missing or when there is one more, and holds no early data as another reads it.
func FuzzClientHello(f *testing.F) {
	hello := helloOf(f, &tls.Config{ServerName: "www.example.com"})
	f.Add(hello)
	f.Add(records(hello[5:], 1, 2, 300))
	f.Add(withExtension(hello, tlsEarlyData, nil))
	f.Add(helloOf(f, &tls.Config{ServerName: "www.example.com", MaxVersion: tls.VersionTLS12}))
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		got := judge(b)
		if got != harmless {
			if got == significant && judge(append(bytes.Clone(b), 0)) != significant {
				t.Error("one more byte makes it harmless")
			}
			return
		}
		for i := range b {
			if judge(b[:i]) != undecided {
				t.Fatalf("of %d bytes %d say what it is", len(b), i)
			}
		}
		if judge(append(bytes.Clone(b), tlsHandshake)) != significant {
			t.Error("something follows it")
		}
		var m []byte
		for rest := b; len(rest) > 0; {
			n := 5 + int(binary.BigEndian.Uint16(rest[3:]))
			m = append(m, rest[5:n]...)
			rest = rest[n:]
		}
		if 4+int(binary.BigEndian.Uint32(m)&0xffffff) != len(m) {
			t.Error("it is not one message")
		}
		at := 4 + 2 + 32
		at += 1 + int(m[at])
		at += 2 + int(binary.BigEndian.Uint16(m[at:]))
		at += 1 + int(m[at])
		for at = min(at+2, len(m)); at < len(m); at += 4 + int(binary.BigEndian.Uint16(m[at+2:])) {
			if binary.BigEndian.Uint16(m[at:]) == tlsEarlyData {
				t.Error("it promises early data")
			}
		}
		if at != len(m) {
			t.Error("its extensions are not whole")
		}
	})
}
