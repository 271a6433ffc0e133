package querylog

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
)

// Whatever the octets of a name are, it stays in its field and its line.
func FuzzName(f *testing.F) {
	f.Add([]byte("\x03www\x07example\x03com\x00"))
	f.Add([]byte("\x04\"\n \\\x00"))
	f.Add([]byte("\x3f"))
	f.Fuzz(func(t *testing.T, name []byte) {
		e := Entry{Zone: "example.com", Name: name, POP: "icn1", Proto: "udp", Count: 2}
		e.Answer = func(int) (uint16, uint32, []byte) { return []uint16{2, 16}[len(name)%2], 1, name }
		line := string(e.AppendRoute53(nil))
		if strings.Count(line, " ") != 9 || strings.Count(line, "\n") != 1 || !strings.HasSuffix(line, "\n") {
			t.Errorf("%q", line)
		}
		var got struct{ Name, Type string }
		text := e.AppendJSON(nil)
		if err := json.Unmarshal(text, &got); err != nil || got.Name != strings.Fields(line)[3] || bytes.Count(text, []byte("\n")) != 1 {
			t.Errorf("%q: %v, %q", text, err, got.Name)
		}
	})
}
