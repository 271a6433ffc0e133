package api

import (
	"bytes"
	"crypto/rand"
	bits "encoding/binary"
	"encoding/json"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Documents come as texts in JSON, some of hundreds of kilobytes, which encoding/json goes through byte by byte, three times. Long texts are
// therefore taken out of such a body before it is decoded, marks stand in their place, and what was decoded gets them back. All else
// is encoding/json's: what is no JSON stays none. It is for what has texts alone: neither bytes nor types that read themselves.

// longText is from how many bytes on a text is taken out.
const longText = 4 << 10

// lifted are the texts that were taken out of a body.
type lifted struct {
	mark  string // what stands in the place of each, with its number behind it: nobody can know it
	texts []string
}

func newLifted() *lifted { return &lifted{mark: rand.Text() + ":"} }

// lift takes long texts out of a body of JSON. It returns a body that is decoded in its place.
func lift(body []byte) (short []byte, l *lifted) {
	if len(body) < longText {
		return body, nil
	}
	done := 0 // of the body, what is in short or lifted
	for at := 0; ; {
		i := bytes.IndexByte(body[at:], '"')
		if i < 0 {
			break
		}
		begin := at + i + 1
		end := begin + textEnd(body[begin:])
		if at = end + 1; end >= len(body) {
			break // it has no end
		}
		if end-begin < longText {
			continue
		}
		text, ok := unquoted(body[begin:end])
		if !ok {
			continue
		}
		if l == nil {
			l = newLifted()
		}
		short = append(short, body[done:begin]...)
		short = strconv.AppendInt(append(short, l.mark...), int64(len(l.texts)), 10)
		l.texts, done = append(l.texts, text), end
	}
	if l == nil {
		return body, nil
	}
	return append(short, body[done:]...), l
}

// textEnd is where the quote is that ends a text which begins here; len(text): there is none.
func textEnd(text []byte) int {
	for at := 0; ; {
		i := bytes.IndexByte(text[at:], '"')
		if i < 0 {
			return len(text)
		}
		end := at + i
		slashes := 0
		for slashes < end && text[end-1-slashes] == '\\' {
			slashes++
		}
		if slashes%2 == 0 {
			return end
		}
		at = end + 1
	}
}

// plain is how many bytes a text begins with that stand for themselves between two quotes.
func plain(text []byte) int {
	const ones, tops = 0x0101010101010101, 0x8080808080808080
	i := 0
	for ; i+8 <= len(text); i += 8 {
		w := bits.LittleEndian.Uint64(text[i:])
		quotes, slashes := w^'"'*ones, w^'\\'*ones
		// The top bit of a byte is set below where it is less than a space, or zero; of bytes that are none of these it may be only behind one that is.
		if ((w-' '*ones)&^w|(quotes-ones)&^quotes|(slashes-ones)&^slashes)&tops != 0 {
			break
		}
	}
	for i < len(text) && text[i] >= ' ' && text[i] != '"' && text[i] != '\\' {
		i++
	}
	return i
}

// marshal writes a body as JSON, the long texts of an ApplyRequest by quoting them here.
func marshal(body any) ([]byte, error) {
	req, ok := body.(ApplyRequest)
	if !ok {
		return json.Marshal(body)
	}
	l := newLifted()
	req.Files = slices.Clone(req.Files)
	size := 0
	for i := range req.Files {
		if f := &req.Files[i]; len(f.Data) >= longText && utf8.ValidString(f.Data) {
			size += len(f.Data) + len(f.Data)/16
			l.texts, f.Data = append(l.texts, f.Data), l.mark+strconv.Itoa(len(l.texts))
		}
	}
	short, err := json.Marshal(req)
	if err != nil || len(l.texts) == 0 {
		return short, err
	}
	data := make([]byte, 0, len(short)+size)
	for i, text := range l.texts { // in their order, and each once: nobody else knows the mark
		before, after, found := bytes.Cut(short, []byte(`"`+l.mark+strconv.Itoa(i)+`"`))
		if !found {
			return json.Marshal(body)
		}
		data, short = appendQuoted(append(data, before...), []byte(text)), after
	}
	return append(data, short...), nil
}

// appendQuoted appends a text, which is UTF-8, as JSON has it.
func appendQuoted(b, text []byte) []byte {
	b = append(b, '"')
	for {
		n := plain(text)
		b = append(b, text[:n]...)
		if n == len(text) {
			return append(b, '"')
		}
		switch c := text[n]; c {
		case '\n':
			b = append(b, `\n`...)
		case '"', '\\':
			b = append(b, '\\', c)
		default:
			b = append(b, `\u00`...)
			b = append(b, "0123456789abcdef"[c>>4], "0123456789abcdef"[c&15])
		}
		text = text[n+1:]
	}
}

// unquoted is the text that is written between two quotes. It is false of what is wrong, and of what is written in other ways than
// most: that is left to encoding/json.
func unquoted(raw []byte) (string, bool) {
	var text strings.Builder
	text.Grow(len(raw))
	for {
		i := plain(raw)
		if text.Write(raw[:i]); i == len(raw) {
			break
		}
		if raw[i] != '\\' || i+1 == len(raw) {
			return "", false
		}
		raw = raw[i+1:]
		c := raw[0]
		raw = raw[1:]
		switch c {
		case 'n':
			text.WriteByte('\n')
		case 't':
			text.WriteByte('\t')
		case 'r':
			text.WriteByte('\r')
		case '"', '\\', '/':
			text.WriteByte(c)
		case 'u':
			if len(raw) < 4 {
				return "", false
			}
			code, err := strconv.ParseUint(string(raw[:4]), 16, 16)
			if err != nil || code >= 0xd800 && code < 0xe000 { // of two that make one
				return "", false
			}
			text.WriteRune(rune(code))
			raw = raw[4:]
		default:
			return "", false
		}
	}
	return text.String(), utf8.ValidString(text.String())
}

// putBack has what was decoded have the texts where their marks stand.
func (l *lifted) putBack(v reflect.Value) {
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			l.putBack(v.Elem())
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				l.putBack(v.Field(i))
			}
		}
	case reflect.Slice:
		for i := range v.Len() {
			l.putBack(v.Index(i))
		}
	case reflect.Map:
		for _, key := range v.MapKeys() {
			name, value := reflect.New(key.Type()).Elem(), reflect.New(v.Type().Elem()).Elem()
			name.Set(key)
			value.Set(v.MapIndex(key))
			l.putBack(name)
			l.putBack(value)
			v.SetMapIndex(key, reflect.Value{})
			v.SetMapIndex(name, value)
		}
	case reflect.String:
		if text, ok := l.of(v.String()); ok {
			v.SetString(text)
		}
	}
}

// of is the text for which a mark stands.
func (l *lifted) of(mark string) (string, bool) {
	number, ok := strings.CutPrefix(mark, l.mark)
	i, err := strconv.Atoi(number)
	if !ok || err != nil || i < 0 || i >= len(l.texts) {
		return "", false
	}
	return l.texts[i], true
}
