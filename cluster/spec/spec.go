// Package spec is what is agreed: the resources an operator declares, as plain types, and how they are
// read, completed with defaults, validated, and compared. It knows no network, no clock and no disk; it
// imports the standard library and the YAML decoder.
package spec
