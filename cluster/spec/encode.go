package spec

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
)

// Check reads the resource as it would be applied, as a part of a spec. The error is Faults, or that of a resource that cannot be written.
func (r Resource) Check() (*Spec, error) {
	data, err := r.YAML()
	if err != nil {
		return nil, err
	}
	documents, err := Split("", data)
	if err != nil {
		return nil, err
	}
	return Build(0, documents, Options{Partial: true})
}

// YAML is the resource as a document that people read: a field a line, and each item of a list of structures on a line of its own. What
// is empty is left out. Split and Build make the same resource of it.
func (r Resource) YAML() ([]byte, error) {
	data, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	var b strings.Builder
	d := decodeJSON(data)
	d.Token() // the brace
	for d.More() {
		name, _ := d.Token()
		var field json.RawMessage
		if err := d.Decode(&field); err != nil {
			return nil, err
		}
		if !bytes.HasPrefix(field, []byte("[{")) {
			fmt.Fprintf(&b, "%s: %s\n", name, flow(decodeJSON(field)))
			continue
		}
		fmt.Fprintf(&b, "%s:\n", name)
		items := decodeJSON(field)
		items.Token()
		for items.More() {
			fmt.Fprintf(&b, "  - %s\n", flow(items))
		}
	}
	return []byte(b.String()), nil
}

// Flow is a part of a resource on one line of YAML: {name: www, type: A, values: [192.0.2.1]}.
func Flow(part any) string {
	data, err := json.Marshal(part)
	if err != nil {
		return err.Error() // parts of resources have no such
	}
	return flow(decodeJSON(data))
}

func decodeJSON(data []byte) *json.Decoder {
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	return d
}

// flow writes the next value of what json.Marshal made.
func flow(d *json.Decoder) string {
	token, _ := d.Token()
	switch token := token.(type) {
	case json.Delim:
		var parts []string
		for d.More() {
			part := ""
			if token == '{' {
				name, _ := d.Token()
				part = spelled(fmt.Sprint(name)) + ": "
			}
			parts = append(parts, part+flow(d))
		}
		d.Token() // its end
		return string(token) + strings.Join(parts, ", ") + map[json.Delim]string{'{': "}", '[': "]"}[token]
	case string:
		return spelled(token)
	default:
		return fmt.Sprint(token)
	}
}

// spelled is a text as YAML: as it is where nobody takes it for anything else, or else in quotes.
func spelled(text string) string {
	if a, err := netip.ParseAddr(text); err == nil && a.Is4() {
		return text
	}
	plain, visible := text != "" && (text[0] >= 'a' && text[0] <= 'z' || text[0] >= 'A' && text[0] <= 'Z'), true
	for _, c := range []byte(text) {
		plain = plain && (plainByte(c) || c == '.' || c == '/')
		visible = visible && c >= ' ' && c <= '~'
	}
	switch strings.ToLower(text) {
	case "true", "false", "yes", "no", "on", "off", "y", "n", "null":
		plain = false
	}
	switch {
	case plain:
		return text
	case visible:
		return "'" + strings.ReplaceAll(text, "'", "''") + "'"
	}
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range text {
		switch {
		case r == '"' || r == '\\':
			b.WriteString(`\` + string(r))
		case r < ' ' || r > '~' && r <= 0xffff:
			fmt.Fprintf(&b, `\u%04x`, r)
		case r > 0xffff:
			fmt.Fprintf(&b, `\U%08x`, r)
		default:
			b.WriteRune(r)
		}
	}
	return b.String() + `"`
}
