package testbed

import (
	"embed"
	"fmt"
	"io/fs"
	"path"
	"strings"
)

// The scenarios of labs run in virtual time and on a bed; those of labs/kernel need a kernel.
//
//go:embed labs
var labs embed.FS

// Scenarios are the names of the scenarios that are built in, by which BuiltInScenario finds them: those that need a kernel
// first.
func Scenarios() (names []string) {
	for _, pattern := range []string{"labs/kernel/*.txt", "labs/*.txt"} {
		files, err := fs.Glob(labs, pattern)
		if err != nil {
			panic(err) // the pattern is ours
		}
		for _, f := range files {
			names = append(names, strings.TrimSuffix(path.Base(f), ".txt"))
		}
	}
	return names
}

// BuiltInScenario is the text of a scenario that is built in, and the files that stand beside it.
func BuiltInScenario(name string) (text string, beside fs.FS, err error) {
	beside, err = fs.Sub(labs, "labs")
	if err != nil {
		return "", nil, err
	}
	data, err := fs.ReadFile(beside, name+".txt")
	if err != nil {
		data, err = fs.ReadFile(beside, path.Join("kernel", name+".txt"))
	}
	if err != nil {
		return "", nil, fmt.Errorf("no scenario %q (%s)", name, strings.Join(Scenarios(), ", "))
	}
	return string(data), beside, nil
}
