package spec

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"math"
	"strconv"
	"strings"
)

// resourcesSource has the comments that describe the fields, so that they are written once.
//
//go:embed resources.go
var resourcesSource string

// Schema is a JSON Schema (2020-12) of one document of any kind, for editors. It is made of the types and their
// rules. It knows less than Build: nothing of references, nor of fields that depend on each other.
func Schema() []byte {
	descriptions := describe(resourcesSource)
	defs := map[string]any{}
	var kinds []any
	for _, k := range kindTable {
		def := structureSchema(k.shape, descriptions, defs)
		def["properties"].(map[string]any)["kind"] = map[string]any{"const": k.Name}
		def["required"] = append([]string{"kind"}, def["required"].([]string)...)
		defs[k.Name] = def
		kinds = append(kinds, reference(k.Name))
	}
	schema, err := json.MarshalIndent(map[string]any{
		"$schema": "https://json-schema.org/draft/2020-12/schema",
		"title":   "Perigee resource",
		"type":    "object",
		"oneOf":   kinds,
		"$defs":   defs,
	}, "", "  ")
	if err != nil {
		panic("spec: the schema: " + err.Error()) // it is made of text and numbers only
	}
	return schema
}

func reference(name string) map[string]any { return map[string]any{"$ref": "#/$defs/" + name} }

// structureSchema is the schema of a structure; those within it are put into defs.
func structureSchema(s *shape, descriptions map[string]string, defs map[string]any) map[string]any {
	properties, required := map[string]any{}, []string{}
	for i := range s.fields {
		f := &s.fields[i]
		p := f.schema(descriptions, defs)
		goName := s.typ.Name() + "." + s.typ.Field(f.index).Name
		if text := descriptions[goName]; text != "" {
			p["description"] = text
		}
		properties[f.name] = p
		if f.required {
			required = append(required, f.name)
		}
	}
	schema := map[string]any{"type": "object", "properties": properties, "required": required, "additionalProperties": false}
	if text := descriptions[s.typ.Name()]; text != "" {
		schema["description"] = text
	}
	var one []any
	for _, name := range s.oneOf {
		one = append(one, map[string]any{"required": []string{name}})
	}
	if one != nil {
		schema["oneOf"] = one
	}
	return schema
}

func (f *field) schema(descriptions map[string]string, defs map[string]any) map[string]any {
	s := map[string]any{}
	lowest, highest := "minimum", "maximum"
	switch f.shape.form {
	case formStructure:
		name := f.shape.typ.Name()
		if defs[name] == nil {
			defs[name] = structureSchema(f.shape, descriptions, defs)
		}
		return reference(name)
	case formList:
		item := field{shape: f.shape.item, min: math.Inf(-1), max: math.Inf(1)}
		s["type"], s["items"] = "array", item.schema(descriptions, defs)
		lowest, highest = "minItems", "maxItems"
	case formText:
		s["type"] = []string{"string", "number"} // a number is text as it is written
		lowest, highest = "minLength", "maxLength"
		if f.words != nil {
			delete(s, "type")
			var words []any
			for _, w := range f.words {
				words = append(words, w)
				if _, err := strconv.Atoi(w); err == nil {
					words = append(words, json.Number(w))
				}
			}
			s["enum"] = words
		}
	case formSecret:
		s["type"] = "string"
		lowest, highest = "minLength", "maxLength"
	case formLabels:
		s["type"] = "object"
		s["propertyNames"] = map[string]any{"pattern": labelKeyPattern}
		s["additionalProperties"] = map[string]any{"type": []string{"string", "number"}, "pattern": labelValuePattern}
		lowest, highest = "minProperties", "maxProperties"
	case formInteger:
		s["type"] = "integer"
		if f.words != nil {
			delete(s, "type")
			var numbers []json.Number
			for _, w := range f.words {
				numbers = append(numbers, json.Number(w))
			}
			s["enum"] = numbers
		}
	case formFraction:
		s["type"] = "number"
	case formSwitch:
		s["type"] = "boolean"
	case formDuration:
		s["type"], s["pattern"] = []string{"integer", "string"}, `^([0-9]+|([0-9.]+(ns|us|µs|ms|s|m|h))+)$`
	case formAddress:
		s["type"], s["anyOf"] = "string", []any{map[string]any{"format": "ipv4"}, map[string]any{"format": "ipv6"}}
	case formNetwork:
		s["type"], s["pattern"] = "string", `^[0-9A-Fa-f:.]+/[0-9]+$`
	}
	if f.least != "" {
		s[lowest] = f.min
	}
	if f.most != "" {
		s[highest] = f.max
	}
	if f.fallback != nil {
		s["default"] = f.fallbackJSON()
	}
	return s
}

// fallbackJSON is the default as JSON has it.
func (f *field) fallbackJSON() any {
	switch f.shape.form {
	case formText:
		return f.fallback.text
	case formSwitch:
		return f.fallback.text == "true"
	case formDuration:
		d, err := parseDuration(f.fallback.text)
		if err != nil {
			panic(fmt.Sprintf("spec: the default %q: %v", f.fallback.text, err))
		}
		return d
	}
	n, err := strconv.ParseFloat(f.fallback.text, 64)
	if err != nil {
		panic(fmt.Sprintf("spec: the default %q: %v", f.fallback.text, err))
	}
	return n
}

// describe reads the comments of types (by name) and of their fields (Type.Field) in Go source.
func describe(source string) map[string]string {
	file, err := parser.ParseFile(token.NewFileSet(), "resources.go", source, parser.ParseComments)
	if err != nil {
		panic("spec: its own source: " + err.Error())
	}
	descriptions := map[string]string{}
	text := func(groups ...*ast.CommentGroup) string {
		var all []string
		for _, g := range groups {
			all = append(all, strings.Fields(g.Text())...)
		}
		return strings.Join(all, " ")
	}
	for _, declaration := range file.Decls {
		general, ok := declaration.(*ast.GenDecl)
		if !ok || general.Tok != token.TYPE {
			continue
		}
		for _, s := range general.Specs {
			typ := s.(*ast.TypeSpec)
			descriptions[typ.Name.Name] = text(general.Doc)
			structure, ok := typ.Type.(*ast.StructType)
			if !ok {
				continue
			}
			for _, f := range structure.Fields.List {
				for _, name := range f.Names {
					descriptions[typ.Name.Name+"."+name.Name] = text(f.Doc, f.Comment)
				}
			}
		}
	}
	return descriptions
}
