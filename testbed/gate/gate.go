// Package gate is before tests that not every machine can run: those with network namespaces, routers and other programs. `make lab` asks for all of them.
package gate

import (
	"os"
	"os/exec"
	"testing"
)

// variable is set for who wants such tests, to required for who wants what cannot be run to fail.
const variable = "PERIGEE_LAB"

// Wanted skips a test that nobody asked for.
func Wanted(t testing.TB) {
	t.Helper()
	if os.Getenv(variable) == "" {
		t.Skip("make lab runs it")
	}
}

// Lacks ends a test for what this machine lacks: it is skipped, or fails where all are required.
func Lacks(t testing.TB, what string) {
	t.Helper()
	if os.Getenv(variable) == "required" {
		t.Fatal(what)
	}
	t.Skip(what)
}

// Programs ends a test where one of some programs is not there, which are given with the Debian packages that have them.
func Programs(t testing.TB, packages map[string]string) {
	t.Helper()
	for program, pkg := range packages {
		if _, err := exec.LookPath(program); err != nil {
			Lacks(t, "needs "+program+": apt-get install -y --no-install-recommends "+pkg)
		}
	}
}
