package api

import (
	"encoding"
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"
)

// schema is a JSON Schema (draft 2020-12), or a part of the OpenAPI document (https://spec.openapis.org/oas/v3.1.1).
type schema = map[string]any

// OpenAPI is the document of what is served to people and programs.
func OpenAPI() []byte {
	var open []route
	for _, r := range routes() {
		if !r.nodes {
			open = append(open, r)
		}
	}
	return document(open)
}

// document describes the routes of a table.
func document(table []route) []byte {
	types := &types{named: schema{}, refusals: schema{}}
	paths := schema{}
	for _, r := range table {
		path, known := paths[r.path].(schema)
		if !known {
			path = schema{}
			paths[r.path] = path
		}
		path[strings.ToLower(r.method)] = types.operation(r)
	}
	types.of(reflect.TypeFor[Error](), false)
	data, err := json.MarshalIndent(schema{
		"openapi": "3.1.0",
		"info": schema{
			"title": "Perigee", "version": "1",
			"description": "The API of every node. What must be decided by the cluster's leader is forwarded there. " +
				"The roles are read, operate, purge and admin: read is in operate and purge, and all are in admin. A token that is limited to named " +
				"resources sees and changes those of the spec only; what is observed (status, health, explain, metrics) is not limited.",
		},
		"security": []any{schema{"token": []any{}}},
		"paths":    paths,
		"components": schema{
			"schemas":   types.named,
			"responses": types.refusals,
			"securitySchemes": schema{"token": schema{
				"type": "http", "scheme": "bearer", "description": "an access token; the unix socket needs none",
			}},
		},
	}, "", " ")
	if err != nil {
		panic(err) // it is of maps and texts
	}
	return append(data, '\n')
}

// operation is one route.
func (t *types) operation(r route) schema {
	about := fmt.Sprintf("Needs the role `%s`.", r.role)
	if r.nodes {
		about = "Only for nodes, at the control port."
	}
	if r.leader {
		about += " May be forwarded to the leader."
	}
	answers := schema{"200": t.answer(r)}
	for status, why := range refusals(r) {
		name := strconv.Itoa(status)
		answers[name] = schema{"$ref": "#/components/responses/" + name}
		t.refusals[name] = schema{"description": why, "content": schema{asJSON: schema{"schema": ref("Error")}}}
	}
	op := schema{"operationId": r.id(), "summary": r.summary, "description": about, "responses": answers, "x-perigee-role": string(r.role)}
	var params []any
	for _, p := range r.params {
		params = append(params, schema{"name": p.name, "in": p.in, "required": p.in == "path", "description": p.about, "schema": p.schema})
	}
	if r.match {
		params = append(params, schema{"name": "If-Match", "in": "header", "schema": schema{"type": "string"},
			"description": `the revision that the change must follow, as "12"; * is any`})
	}
	if params != nil {
		op["parameters"] = params
	}
	switch {
	case r.request != nil:
		op["requestBody"] = schema{"required": true, "content": schema{asJSON: schema{"schema": t.of(r.request, !r.nodes)}}}
	case r.stream:
		op["requestBody"] = schema{"required": true, "content": schema{binary: schema{"schema": schema{}}}}
	}
	return op
}

func (t *types) answer(r route) schema {
	kind, content := r.kind, schema{}
	switch {
	case r.response != nil:
		kind, content = asJSON, t.of(r.response, false)
	case strings.HasPrefix(kind, "text/"):
		content = schema{"type": "string"}
		kind, _, _ = strings.Cut(kind, ";")
	}
	answer := schema{"description": "done", "content": schema{kind: schema{"schema": content}}}
	if r.match || r.response == reflect.TypeFor[ResourceList]() {
		answer["headers"] = schema{"ETag": schema{"schema": schema{"type": "string"},
			"description": "the revision, as If-Match takes it; not after a dry run"}}
	}
	return answer
}

// refusals are the answers that a route has beside 200.
func refusals(r route) map[int]string {
	all := map[int]string{
		http.StatusBadRequest:          "the request is not understood",
		http.StatusUnauthorized:        "nobody who is known asks",
		http.StatusForbidden:           "whoever asks may not",
		http.StatusNotFound:            "there is no such thing",
		http.StatusConflict:            "it is not possible as things are",
		http.StatusUnprocessableEntity: "it is understood and wrong; faults says where",
		http.StatusTooManyRequests:     "too much is asked at once; Retry-After says when to ask again",
		http.StatusInternalServerError: "a fault of the node",
		http.StatusServiceUnavailable:  "no leader is reached; the message names the last one",
	}
	if r.match {
		all[http.StatusPreconditionFailed] = "the network is at another revision than If-Match says"
	}
	if r.most > 0 {
		all[http.StatusRequestEntityTooLarge] = "the body is too long"
	}
	return all
}

// id is the route's name in the document: postNodesNameRevoke.
func (r route) id() string {
	id := strings.ToLower(r.method)
	for word := range strings.FieldsFuncSeq(strings.TrimPrefix(r.path, "/v1"), func(c rune) bool { return !unicode.IsLetter(c) }) {
		id += strings.ToUpper(word[:1]) + word[1:]
	}
	return id
}

// types are the schemas of Go types, by their names, and the refusals by their status.
type types struct{ named, refusals schema }

func ref(name string) schema { return schema{"$ref": "#/components/schemas/" + name} }

// of is the schema of a type as encoding/json writes it. A type that is taken of people is
// closed: what it does not know is refused.
func (t *types) of(of reflect.Type, taken bool) schema {
	switch {
	case of == reflect.TypeFor[time.Time]():
		return schema{"type": "string", "format": "date-time"}
	case of == reflect.TypeFor[Duration]():
		return schema{"type": "string", "description": "such as 90s or 1h30m"}
	case of == reflect.TypeFor[[]byte]():
		return schema{"type": "string", "contentEncoding": "base64"}
	case isText(of):
		return schema{"type": "string"}
	}
	switch of.Kind() {
	case reflect.Pointer:
		return t.of(of.Elem(), taken)
	case reflect.String:
		return schema{"type": "string"}
	case reflect.Bool:
		return schema{"type": "boolean"}
	case reflect.Int, reflect.Int64:
		return schema{"type": "integer", "format": "int64"}
	case reflect.Uint32, reflect.Uint64:
		return schema{"type": "integer", "format": "int64", "minimum": 0}
	case reflect.Float64:
		return schema{"type": "number", "format": "double"}
	case reflect.Slice:
		return schema{"type": "array", "items": t.of(of.Elem(), taken)}
	case reflect.Map:
		return schema{"type": "object", "additionalProperties": t.of(of.Elem(), taken)}
	case reflect.Interface:
		return schema{}
	case reflect.Struct:
		t.object(of, taken)
		return ref(of.Name())
	}
	panic("api: no schema for " + of.String()) // a type of the table of routes: the tests see it
}

// object adds a struct to the schemas.
func (t *types) object(of reflect.Type, taken bool) {
	known, again := t.named[of.Name()].(schema)
	if again && (!taken || known["additionalProperties"] == false) {
		return
	}
	properties, needed := schema{}, []any{}
	object := schema{"type": "object", "properties": properties}
	if taken {
		object["additionalProperties"] = false
	}
	t.named[of.Name()] = object // before its fields, which may be of it
	for f := range fieldsOf(of) {
		name, options := f.json()
		properties[name] = t.of(f.Type, taken)
		if !strings.Contains(options, "omit") {
			needed = append(needed, name)
		}
	}
	if len(needed) > 0 {
		object["required"] = needed
	}
}

// field is one of a struct that is in its JSON.
type field struct{ reflect.StructField }

// json is the field's name and its options.
func (f field) json() (name, options string) {
	name, options, _ = strings.Cut(f.Tag.Get("json"), ",")
	return name, options
}

// fieldsOf yields the fields of a struct that are in its JSON, those of embedded structs among them.
func fieldsOf(of reflect.Type) func(yield func(field) bool) {
	return func(yield func(field) bool) {
		for _, f := range reflect.VisibleFields(of) {
			if name, _ := (field{f}).json(); name == "" || name == "-" || !f.IsExported() {
				continue // an embedded struct has no name of its own
			}
			if !yield(field{f}) {
				return
			}
		}
	}
}

func isText(of reflect.Type) bool {
	return of.Implements(reflect.TypeFor[encoding.TextMarshaler]()) || reflect.PointerTo(of).Implements(reflect.TypeFor[encoding.TextMarshaler]())
}

// whole makes values whole: what the document calls an array is one, if an empty one, never null. It remembers what it found of
// a type, since to look through the fields of one takes longer than to write its JSON. There are as many as the answers are of.
type whole struct{ known sync.Map } // reflect.Type → lack

// lack is what a value of a type may lack: lists or maps, its own or those of its fields.
type lack struct {
	may    bool
	fields []lacking // of a struct: those that may
}

type lacking struct {
	index []int
	omit  bool // it is not in the JSON if it is empty
}

// of is a value without missing lists. The value itself is not changed, for others may read it.
func (w *whole) of(v any) any { return w.filled(reflect.ValueOf(v)).Interface() }

func (w *whole) filled(v reflect.Value) reflect.Value {
	lacks := w.lack(v.Type())
	if !lacks.may {
		return v
	}
	switch v.Kind() {
	case reflect.Struct:
		out := reflect.New(v.Type()).Elem()
		out.Set(v)
		for _, f := range lacks.fields {
			if field := v.FieldByIndex(f.index); !f.omit || !field.IsZero() {
				out.FieldByIndex(f.index).Set(w.filled(field))
			}
		}
		return out
	case reflect.Slice:
		out := reflect.MakeSlice(v.Type(), v.Len(), v.Len())
		for i := range v.Len() {
			out.Index(i).Set(w.filled(v.Index(i)))
		}
		return out
	case reflect.Map:
		if v.IsNil() {
			return reflect.MakeMap(v.Type())
		}
	}
	return v
}

func (w *whole) lack(of reflect.Type) lack {
	if known, ok := w.known.Load(of); ok {
		return known.(lack)
	}
	var l lack
	switch {
	case isText(of) || of == reflect.TypeFor[[]byte]():
	case of.Kind() == reflect.Slice || of.Kind() == reflect.Map:
		l.may = true
	case of.Kind() == reflect.Struct:
		for f := range fieldsOf(of) {
			if w.lack(f.Type).may {
				_, options := f.json()
				l.fields = append(l.fields, lacking{f.Index, strings.Contains(options, "omit")})
			}
		}
		l.may = len(l.fields) > 0
	}
	w.known.Store(of, l)
	return l
}
