package spec

import (
	"fmt"
	"math"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
)

// shape is a Go type as documents write it. The types' own tags say the rest: json the field's name, rule what is
// allowed, default what an absent field means. A rule is a comma-separated list of
//
//	required    the field must be given
//	a|b|c       the text is one of these
//	1..10       bounds of a number, of a length of time, of a text's bytes, or of the number of items; either may lack
type shape struct {
	form    shapeForm
	typ     reflect.Type // without its pointer
	pointer bool
	packed  bool    // it is a list of its own making: Records
	item    *shape  // of a list
	fields  []field // of a structure
	oneOf   []string
	secret  bool // it is a secret, or there is one in it
}

type shapeForm int

const (
	formText shapeForm = iota
	formInteger
	formFraction
	formSwitch
	formDuration
	formAddress
	formNetwork
	formLabels
	formSecret
	formList
	formStructure
)

// has says whether a structure has a field.
func (s *shape) has(name string) bool {
	for i := range s.fields {
		if s.fields[i].name == name {
			return true
		}
	}
	return false
}

type field struct {
	name     string
	index    int
	shape    *shape
	required bool
	words    []string
	least    string // the bounds as they are written, for messages and the schema
	most     string
	min, max float64 // seconds for lengths of time
	fallback *node   // what an absent field means, if that does not depend on other fields
	// shared is that value for a pointer: all resources that do not say theirs point to it, since resources never change.
	shared reflect.Value
}

// exactlyOneOf lists the types of which exactly one of some fields is given.
var exactlyOneOf = map[reflect.Type][]string{
	reflect.TypeFor[Condition]():   {"hostHeader", "pathPattern", "httpRequestMethod"},
	reflect.TypeFor[Action]():      {"forward", "fixedResponse", "redirect"},
	reflect.TypeFor[Origin]():      {"url", "loadBalancers"},
	reflect.TypeFor[Endpoint]():    {"targetGroup", "loadBalancer", "address", "subnet"},
	reflect.TypeFor[Record]():      {"values", "alias"},
	reflect.TypeFor[Alias]():       {"distribution", "loadBalancer", "accelerator", "record"},
	reflect.TypeFor[GeoLocation](): {"continent", "country"},

	reflect.TypeFor[GeoProximityLocation](): {"region", "coordinates"},
}

// shapeOf reads a type and its tags. It panics on a tag that makes no sense, which no input can bring about.
func shapeOf(t reflect.Type) *shape {
	s := &shape{typ: t}
	if t.Kind() == reflect.Pointer {
		s.pointer, s.typ = true, t.Elem()
	}
	switch {
	case s.typ == reflect.TypeFor[Duration]():
		s.form = formDuration
	case s.typ == reflect.TypeFor[netip.Addr]():
		s.form = formAddress
	case s.typ == reflect.TypeFor[netip.Prefix]():
		s.form = formNetwork
	case s.typ == reflect.TypeFor[map[string]string]():
		s.form = formLabels
	case s.typ == reflect.TypeFor[Records]():
		s.form, s.packed, s.item = formList, true, shapeOf(reflect.TypeFor[Record]())
	case s.typ == reflect.TypeFor[Secret]():
		s.form, s.secret = formSecret, true
	case s.typ.Kind() == reflect.String:
		s.form = formText
	case s.typ.Kind() == reflect.Int, s.typ.Kind() == reflect.Uint16:
		s.form = formInteger
	case s.typ.Kind() == reflect.Float64:
		s.form = formFraction
	case s.typ.Kind() == reflect.Bool:
		s.form = formSwitch
	case s.typ.Kind() == reflect.Slice:
		s.form, s.item = formList, shapeOf(s.typ.Elem())
		s.secret = s.item.secret
	case s.typ.Kind() == reflect.Struct:
		s.form, s.oneOf = formStructure, exactlyOneOf[s.typ]
		for i := range s.typ.NumField() {
			if !s.typ.Field(i).IsExported() {
				continue // it is no field of documents
			}
			f := fieldOf(s.typ.Field(i), i)
			s.fields, s.secret = append(s.fields, f), s.secret || f.shape.secret
		}
	default:
		panic(fmt.Sprintf("spec: no shape for %v", t))
	}
	return s
}

func fieldOf(sf reflect.StructField, index int) field {
	f := field{index: index, shape: shapeOf(sf.Type), min: math.Inf(-1), max: math.Inf(1)}
	f.name, _, _ = strings.Cut(sf.Tag.Get("json"), ",")
	for word := range strings.SplitSeq(sf.Tag.Get("rule"), ",") {
		switch least, most, bounds := strings.Cut(word, ".."); {
		case word == "":
		case word == "required":
			f.required = true
		case bounds:
			f.least, f.most = least, most
			if least != "" {
				f.min = bound(least)
			}
			if most != "" {
				f.max = bound(most)
			}
		default:
			f.words = strings.Split(word, "|")
		}
	}
	if text, ok := sf.Tag.Lookup("default"); ok {
		f.fallback = &node{form: plain, text: text}
		if f.shape.form == formSwitch {
			f.fallback.form = boolean
		}
		if f.shape.pointer {
			f.shared = reflect.New(f.shape.typ)
			if problem := f.scalar(f.fallback, f.shared.Elem()); problem != "" {
				panic(fmt.Sprintf("spec: the default %q: %s", text, problem))
			}
		}
	}
	return f
}

// bound reads a bound of a rule: a number, or a length of time in seconds.
func bound(text string) float64 {
	if n, err := strconv.ParseFloat(text, 64); err == nil {
		return n
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		panic("spec: a rule's bound: " + err.Error())
	}
	return d.Seconds()
}

// path is where in a document the decoder is; it is written out only for a fault.
type path struct {
	above *path
	name  string
	index int
}

func (p *path) field(name string) path { return path{above: p, name: name} }
func (p *path) item(i int) path        { return path{above: p, index: i} }

func (p *path) String() string {
	switch {
	case p == nil || p.above == nil:
		return ""
	case p.name == "":
		return fmt.Sprintf("%s[%d]", p.above, p.index)
	case p.above.above == nil:
		return p.name
	}
	return p.above.String() + "." + p.name
}

// decoder fills Go values from nodes and tells every fault.
type decoder struct {
	fault func(line int, field, message string)
	// pass takes the path of a field that there is not; nil: that is a fault.
	pass func(field string)
	// open opens a sealed text; nil: it stays sealed.
	open func(field, sealed string) (string, error)
	// share gives a text that is equal and may be in memory already; nil: every text is its own.
	share func(text string) string
	// packing has the zone's records as far as they were packed when the document was read; nil: they were not.
	packing *packing
}

// resource decodes a whole document's tree into a pointer to a kind's type.
func (d *decoder) resource(n *node, s *shape, into any) {
	root := path{}
	if n.form != mapping {
		d.fault(n.line, "", "must have fields, name: value")
		return
	}
	d.structure(n, s, reflect.ValueOf(into).Elem(), &root)
}

// structure decodes a mapping, or with nil only fills in the defaults.
func (d *decoder) structure(n *node, s *shape, v reflect.Value, at *path) {
	meant := d.unknown(n, s, at)
	given := 0
	for i := range s.fields {
		f := &s.fields[i]
		here := at.field(f.name)
		value := n.field(f.name)
		present := value != nil && value.form != null
		if (present || slices.Contains(meant, f.name)) && slices.Contains(s.oneOf, f.name) {
			given++
		}
		switch {
		case present:
			d.value(value, f, v.Field(f.index), &here)
		case f.required && n != nil:
			if !slices.Contains(meant, f.name) {
				d.fault(n.line, here.String(), "is required")
			}
		case f.shared.IsValid():
			v.Field(f.index).Set(f.shared)
		case f.fallback != nil:
			d.value(f.fallback, f, v.Field(f.index), &here)
		case f.shape.form == formStructure && !f.shape.pointer:
			d.structure(nil, f.shape, v.Field(f.index), &here)
		}
	}
	if n != nil && s.oneOf != nil && given != 1 {
		d.fault(n.line, at.String(), "must have exactly one of "+list(s.oneOf, "and"))
	}
}

// unknown tells the fields that the structure does not have, and returns those that they may have been meant for.
func (d *decoder) unknown(n *node, s *shape, at *path) (meant []string) {
	if n == nil {
		return nil
	}
	for i := range n.fields {
		e := &n.fields[i]
		if at.above == nil && e.name == "kind" || s.has(e.name) {
			continue
		}
		if d.pass != nil {
			here := at.field(fmt.Sprintf("%.40s", e.name))
			d.pass(here.String())
			continue
		}
		var missing []string
		for _, f := range s.fields {
			if n.field(f.name) == nil {
				missing = append(missing, f.name)
			}
		}
		if guess, ok := nearest(e.name, missing); ok {
			meant = append(meant, guess)
		}
		here := at.field(fmt.Sprintf("%.40s", e.name)) // it may be as long as the document
		d.fault(e.line, here.String(), "no such field"+near(e.name, missing))
	}
	return meant
}

// value decodes one field or item by its rule.
func (d *decoder) value(n *node, f *field, v reflect.Value, at *path) {
	if f.shape.pointer {
		v.Set(reflect.New(f.shape.typ))
		v = v.Elem()
	}
	switch f.shape.form {
	case formStructure:
		if n.form != mapping {
			d.fault(n.line, at.String(), "must have fields, name: value")
			return
		}
		d.structure(n, f.shape, v, at)
	case formList:
		if f.shape.packed {
			d.records(n, f, v, at)
		} else {
			d.list(n, f, v, at)
		}
	case formLabels:
		d.labels(n, f, v, at)
	case formSecret:
		d.secret(n, f, v, at)
	default:
		problem := f.scalar(n, v)
		if problem != "" {
			d.fault(n.line, at.String(), problem)
		} else if f.shape.form == formText && f.words == nil && d.share != nil {
			v.SetString(d.share(v.String()))
		}
	}
}

func (d *decoder) labels(n *node, f *field, v reflect.Value, at *path) {
	if n.form != mapping {
		d.fault(n.line, at.String(), "must have fields, name: value")
		return
	}
	if float64(len(n.fields)) > f.max {
		d.fault(n.line, at.String(), fmt.Sprintf("must be %s, not %d", f.bounds(), len(n.fields)))
		return
	}
	if len(n.fields) == 0 {
		return
	}
	labels := make(map[string]string, len(n.fields))
	for i := range n.fields {
		e := &n.fields[i]
		if problem := labelProblem(e.name, &e.value); problem != "" {
			here := at.field(fmt.Sprintf("%.80s", e.name))
			d.fault(e.line, here.String(), problem)
			continue
		}
		key, value := e.name, e.value.text
		if d.share != nil {
			key, value = d.share(key), d.share(value)
		}
		labels[key] = value
	}
	v.Set(reflect.ValueOf(labels))
}

// secret decodes a secret and opens it where it is sealed. What it says of it never quotes it.
func (d *decoder) secret(n *node, f *field, v reflect.Value, at *path) {
	text := strings.Clone(n.text)
	switch size := float64(len(text)); {
	case n.form == mapping || n.form == sequence:
		d.fault(n.line, at.String(), "must be a single value")
		return
	case !n.isText():
		d.fault(n.line, at.String(), "must be text: put it in quotes")
		return
	case text == "" && f.required:
		d.fault(n.line, at.String(), "must not be empty")
		return
	case size < f.min || size > f.max:
		d.fault(n.line, at.String(), fmt.Sprintf("must be %s bytes long, not %d", f.bounds(), len(text)))
		return
	}
	if d.open != nil && isSealed(text) {
		var err error
		if text, err = d.open(at.String(), text); err != nil {
			d.fault(n.line, at.String(), "is sealed, and cannot be opened: "+err.Error())
			return
		}
	}
	v.Set(reflect.ValueOf(Secret{text}))
}

func (d *decoder) list(n *node, f *field, v reflect.Value, at *path) {
	if n.form != sequence {
		d.fault(n.line, at.String(), "must be a list")
		return
	}
	if count := float64(len(n.items)); count < f.min || count > f.max {
		d.fault(n.line, at.String(), fmt.Sprintf("must have %s items, not %d", f.bounds(), len(n.items)))
		return
	}
	v.Set(reflect.MakeSlice(f.shape.typ, len(n.items), len(n.items)))
	item := field{shape: f.shape.item, min: math.Inf(-1), max: math.Inf(1)}
	for i := range n.items {
		here := at.item(i)
		if n.items[i].form == null {
			d.fault(n.items[i].line, here.String(), "is empty")
			continue
		}
		d.value(&n.items[i], &item, v.Index(i), &here)
	}
}

// scalar decodes one number, text, switch, address or length of time, and returns what is wrong with it.
func (f *field) scalar(n *node, v reflect.Value) (problem string) {
	if n.form == mapping || n.form == sequence {
		return "must be a single value"
	}
	switch f.shape.form {
	case formText:
		return f.textValue(n, v)
	case formInteger:
		return f.integerValue(n, v)
	case formFraction:
		x, err := strconv.ParseFloat(n.text, 64)
		if err != nil || n.form == quoted || math.IsInf(x, 0) || math.IsNaN(x) {
			return fmt.Sprintf("must be a number, not %s", n.shown())
		}
		v.SetFloat(x)
		return f.within(x, n)
	case formSwitch:
		if n.form != boolean {
			return fmt.Sprintf("must be true or false, not %s", n.shown())
		}
		v.SetBool(strings.EqualFold(n.text, "true"))
	case formDuration:
		length, err := parseDuration(n.text)
		if err != nil || n.form == boolean {
			return fmt.Sprintf("%v, not %s", errNotDuration, n.shown())
		}
		v.SetInt(int64(length))
		return f.within(length.Std().Seconds(), n)
	case formAddress:
		a, err := netip.ParseAddr(n.text)
		if err != nil || a.Zone() != "" {
			return fmt.Sprintf("must be an IP address, not %s", n.shown())
		}
		v.Set(reflect.ValueOf(a.Unmap()))
	case formNetwork:
		p, err := netip.ParsePrefix(n.text)
		if err != nil || p.Addr().Is4In6() {
			return fmt.Sprintf("must be a range of IP addresses like 192.0.2.0/24, not %s", n.shown())
		}
		v.Set(reflect.ValueOf(p.Masked())) // EC2 takes 192.0.2.7/24 and means 192.0.2.0/24, too
	}
	return ""
}

func (f *field) textValue(n *node, v reflect.Value) (problem string) {
	switch {
	case !n.isText():
		return fmt.Sprintf("must be text: put %q in quotes", n.text)
	case n.text == "" && f.required:
		return "must not be empty"
	case f.words != nil:
		for _, word := range f.words {
			if word == n.text {
				v.SetString(word) // the rule's own text, which all share
				return ""
			}
		}
		return fmt.Sprintf("must be %s, not %s%s", list(f.words, "or"), n.shown(), near(n.text, f.words))
	case float64(len(n.text)) < f.min || float64(len(n.text)) > f.max:
		return fmt.Sprintf("must be %s bytes long, not %d", f.bounds(), len(n.text))
	}
	v.SetString(n.text)
	return ""
}

func (f *field) integerValue(n *node, v reflect.Value) (problem string) {
	i, err := strconv.ParseInt(n.text, 10, 64)
	if err != nil || n.form == quoted || strconv.FormatInt(i, 10) != n.text {
		return fmt.Sprintf("must be a whole number, not %s", n.shown())
	}
	if f.words != nil && !slices.Contains(f.words, n.text) {
		return fmt.Sprintf("must be %s, not %s", list(f.words, "or"), n.shown())
	}
	if problem := f.within(float64(i), n); problem != "" {
		return problem
	}
	if f.shape.typ.Kind() == reflect.Uint16 {
		v.SetUint(uint64(i))
	} else {
		v.SetInt(i)
	}
	return ""
}

func (f *field) within(x float64, n *node) (problem string) {
	if x < f.min || x > f.max {
		return fmt.Sprintf("must be %s, not %s", f.bounds(), n.shown())
	}
	return ""
}

// bounds are a rule's bounds in words: 1–10, -90 to 90, at most 10, at least 1.
func (f *field) bounds() string {
	switch {
	case f.least == "":
		return "at most " + f.most
	case f.most == "":
		return "at least " + f.least
	case f.least[0] == '-':
		return f.least + " to " + f.most
	}
	return f.least + "–" + f.most
}

// shown is a scalar as a message quotes it.
func (n *node) shown() string {
	if n.form == number {
		return fmt.Sprintf("%.40s", n.text)
	}
	return fmt.Sprintf("%.40q", n.text)
}

// list is words as a sentence says them: a, b and c.
func list(words []string, last string) string {
	if len(words) < 2 {
		return strings.Join(words, "")
	}
	return strings.Join(words[:len(words)-1], ", ") + " " + last + " " + words[len(words)-1]
}
