package spec

import "reflect"

// DecodeFile reads a file of one YAML document that is no resource, as strictly as resources are read, into a pointer to
// a structure whose tags say what it may hold (see resources.go: json, rule, default). Its lists are read whole, its
// faults are told all at once. lineOf is the line on which a field stands, by its path (sites[0].name), or what is around
// it, for faults that only the reader can see; it is never nil. The error is Faults.
func DecodeFile(file string, data []byte, into any) (lineOf func(field string) int, err error) {
	root, u := read(data, 1)
	lineOf = root.lineOf
	var found gathered
	if u != nil {
		found.add(0, Fault{File: file, Line: u.line, Message: u.problem})
		return lineOf, found.err()
	}
	d := decoder{fault: func(line int, field, message string) {
		found.add(0, Fault{File: file, Line: line, Field: field, Message: message})
	}}
	d.resource(&root, shapeOf(reflect.TypeOf(into).Elem()), into)
	return lineOf, found.err()
}
