// Package route53 reads and writes record sets as Route 53's API has them in JSON: what `aws route53 list-resource-record-sets` prints,
// and change batches, which it can apply to a zone. What has no counterpart here or there is told, and never dropped
// in silence. It asks nobody.
package route53

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf16"

	"github.com/perigee-net/perigee/cluster/spec"
)

// MaxBytes bounds a file; maxSets bounds its record sets, and maxTold the faults that are told.
const (
	MaxBytes = 64 << 20
	maxSets  = 100_000
	maxTold  = 100
)

// recordSet is a ResourceRecordSet. Fields that are not here are faults.
type recordSet struct {
	Name                    string
	Type                    string
	SetIdentifier           string                `json:",omitempty"`
	Weight                  *int                  `json:",omitempty"`
	Region                  string                `json:",omitempty"`
	GeoLocation             *geoLocation          `json:",omitempty"`
	Failover                string                `json:",omitempty"`
	MultiValueAnswer        *bool                 `json:",omitempty"`
	TTL                     *int64                `json:",omitempty"`
	ResourceRecords         []resourceRecord      `json:",omitempty"`
	AliasTarget             *aliasTarget          `json:",omitempty"`
	HealthCheckID           string                `json:"HealthCheckId,omitempty"`
	TrafficPolicyInstanceID string                `json:"TrafficPolicyInstanceId,omitempty"`
	CidrRoutingConfig       *cidrRoutingConfig    `json:",omitempty"`
	GeoProximityLocation    *geoProximityLocation `json:",omitempty"`
}

type resourceRecord struct{ Value string }

type geoLocation struct {
	ContinentCode   string `json:",omitempty"`
	CountryCode     string `json:",omitempty"`
	SubdivisionCode string `json:",omitempty"`
}

type aliasTarget struct {
	HostedZoneID         string `json:"HostedZoneId"`
	DNSName              string
	EvaluateTargetHealth bool
}

type cidrRoutingConfig struct{ CollectionID, LocationName string }

// MarshalJSON and UnmarshalJSON have the name of AWS for the collection's id.
func (c cidrRoutingConfig) MarshalJSON() ([]byte, error) {
	return json.Marshal(map[string]string{"CollectionId": c.CollectionID, "LocationName": c.LocationName})
}

func (c *cidrRoutingConfig) UnmarshalJSON(data []byte) error {
	var wire struct {
		CollectionID string `json:"CollectionId"`
		LocationName string
	}
	err := strict(data, &wire)
	c.CollectionID, c.LocationName = wire.CollectionID, wire.LocationName
	return err
}

type geoProximityLocation struct {
	AWSRegion      string       `json:",omitempty"`
	LocalZoneGroup string       `json:",omitempty"`
	Coordinates    *coordinates `json:",omitempty"`
	Bias           *int         `json:",omitempty"`
}

type coordinates struct{ Latitude, Longitude string }

// change is one of a batch.
type change struct {
	Action            string // CREATE, UPSERT, DELETE
	ResourceRecordSet recordSet
	line              int
}

// listed is a record set and where it stands.
type listed struct {
	recordSet
	line int
}

// file is what a file says: record sets or changes.
type file struct {
	sets    []listed
	changes []change
	more    string // what the last page says of others behind it; "": it says of none
}

func strict(data []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	return d.Decode(into)
}

// parse reads a file: any number of JSON objects one after the other, each a page of a list, a batch ({"Changes": […]}) or a
// request with one ({"ChangeBatch": {…}}).
func parse(name string, data []byte) (f file, err error) {
	var faults spec.Faults
	if len(data) > MaxBytes {
		return f, spec.Faults{{File: name, Message: fmt.Sprintf("%d bytes: at most %d", len(data), MaxBytes)}}
	}
	p := &parser{name: name, data: text(data)}
	p.Decoder = json.NewDecoder(bytes.NewReader(p.data))
	for {
		err := p.object(&f, false)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			p.fault("%v", err)
			break
		}
	}
	if faults = p.faults; len(faults) > 0 {
		return f, faults
	}
	if len(f.sets)+len(f.changes) == 0 {
		return f, spec.Faults{{File: name, Message: "holds neither ResourceRecordSets nor Changes"}}
	}
	return f, nil
}

// text is a file's text in UTF-8: PowerShell's ">" writes UTF-16, with a mark before it.
func text(data []byte) []byte {
	var order binary.ByteOrder
	switch {
	case bytes.HasPrefix(data, []byte{0xff, 0xfe}):
		order = binary.LittleEndian
	case bytes.HasPrefix(data, []byte{0xfe, 0xff}):
		order = binary.BigEndian
	default:
		return bytes.TrimPrefix(data, []byte("\uFEFF"))
	}
	units := make([]uint16, 0, len(data)/2)
	for at := 2; at+1 < len(data); at += 2 {
		units = append(units, order.Uint16(data[at:]))
	}
	return []byte(string(utf16.Decode(units)))
}

type parser struct {
	*json.Decoder
	name   string
	data   []byte
	faults spec.Faults
	at     int // where the line was counted to
	line   int // there, from 0
}

// here is the line of what comes next.
func (p *parser) here() int {
	end := min(int(p.InputOffset()), len(p.data))
	for end < len(p.data) && bytes.IndexByte([]byte(" \t\r\n,:"), p.data[end]) >= 0 {
		end++
	}
	if end > p.at {
		p.line += bytes.Count(p.data[p.at:end], []byte("\n"))
		p.at = end
	}
	return p.line + 1
}

func (p *parser) fault(format string, args ...any) {
	if len(p.faults) < maxTold {
		p.faults = append(p.faults, spec.Fault{File: p.name, Line: p.here(), Message: fmt.Sprintf(format, args...)})
	}
}

// object reads one object. Its end is io.EOF only before it has begun.
func (p *parser) object(f *file, inside bool) error {
	token, err := p.Token()
	if err != nil {
		return err
	}
	if token != json.Delim('{') {
		return fmt.Errorf("must be an object, not %.40v", token)
	}
	more, page := "", false
	for p.More() {
		name, err := p.Token()
		if err != nil {
			return unexpected(err)
		}
		switch {
		case name == "ResourceRecordSets" && !inside:
			page = true
			err = p.list(func(line int) error {
				var set recordSet
				data, err := p.raw()
				if err == nil {
					err = strict(data, &set)
				}
				f.sets = append(f.sets, listed{set, line})
				return err
			}, func() int { return len(f.sets) })
		case name == "Changes":
			err = p.list(func(line int) error {
				var c change
				data, err := p.raw()
				if err == nil {
					err = strict(data, &c)
				}
				c.line = line
				f.changes = append(f.changes, c)
				return err
			}, func() int { return len(f.changes) })
		case name == "ChangeBatch" && !inside:
			err = p.object(f, true)
		case name == "Comment" || name == "HostedZoneId" || name == "MaxItems" || name == "NextRecordType" || name == "NextRecordIdentifier":
			_, err = p.raw()
		case name == "IsTruncated" || name == "NextToken" || name == "NextRecordName":
			var value json.RawMessage
			if value, err = p.raw(); err == nil && string(value) != "false" && string(value) != "null" && string(value) != `""` {
				more = fmt.Sprint(name)
			}
		default:
			err = fmt.Errorf("%.40q is nothing of a list of record sets or a batch of changes", name)
		}
		if err != nil {
			return unexpected(err)
		}
	}
	if page {
		f.more = more
	}
	_, err = p.Token()
	return unexpected(err)
}

func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

func (p *parser) raw() (data json.RawMessage, err error) {
	err = p.Decode(&data)
	return data, err
}

// list reads a list, an item at a time. An item that is JSON and not what it should be is a fault, and the others are read.
func (p *parser) list(item func(line int) error, count func() int) error {
	if token, err := p.Token(); err != nil || token != json.Delim('[') {
		return errors.Join(err, errors.New("must be a list"))
	}
	for p.More() {
		if count() == maxSets {
			return fmt.Errorf("more than %d record sets", maxSets)
		}
		line := p.here()
		err := item(line)
		var syntax *json.SyntaxError
		switch {
		case errors.As(err, &syntax) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF):
			return err
		case err != nil && len(p.faults) < maxTold:
			p.faults = append(p.faults, spec.Fault{File: p.name, Line: line, Message: strings.TrimPrefix(err.Error(), "json: ")})
		}
	}
	_, err := p.Token()
	return err
}

// decimal makes the octal escapes of Route 53 (\052) those of zone files, which are decimal (\042). A backslash before anything
// else stays.
func decimal(text string) string {
	return escapes(text, 8, func(c byte) string { return fmt.Sprintf(`\%03d`, c) })
}

// octal is the other way.
func octal(text string) string {
	return escapes(text, 10, func(c byte) string { return fmt.Sprintf(`\%03o`, c) })
}

func escapes(text string, base int, write func(byte) string) string {
	if strings.IndexByte(text, '\\') < 0 {
		return text
	}
	var b strings.Builder
	for i := 0; i < len(text); i++ {
		if text[i] != '\\' || i+1 == len(text) {
			b.WriteByte(text[i])
			continue
		}
		value, digits := 0, 0
		for digits < 3 && i+1+digits < len(text) {
			d := int(text[i+1+digits]) - '0'
			if d < 0 || d >= base {
				break
			}
			value = value*base + d
			digits++
		}
		if digits == 3 && value <= 255 {
			b.WriteString(write(byte(value)))
			i += 3
			continue
		}
		b.WriteString(text[i : i+2])
		i++
	}
	return b.String()
}
