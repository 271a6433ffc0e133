//go:build linux

package netns

import (
	"bytes"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/perigee-net/perigee/testbed/uml"
)

// What the kernel here may lack (netem), and what kernels differ in, is tested on Debian's user-mode-linux as well.
func TestAnotherKernelWithNetemDoesTheSame(t *testing.T) {
	if os.Getenv("PERIGEE_UML") != "" {
		t.Skip("this is the other kernel")
	}
	lab(t)
	if missing := uml.Missing(); missing != "" {
		if os.Getenv("PERIGEE_LAB") == "required" {
			t.Fatal(missing)
		}
		t.Skip(missing)
	}
	if raced() {
		t.Skip("the race detector's memory does not fit into user-mode-linux: run it without -race")
	}
	if why := uml.Unfit(t.Context()); why != "" {
		t.Skip(why)
	}
	var out, boot bytes.Buffer
	code, err := uml.Run(t.Context(), uml.Config{
		Memory:  512,
		Command: []string{os.Args[0], "-test.v", "-test.run", "Netem|TwoHosts|Blackhole|Anycast|TUN|Links|OtherEnds|Finish|Setting|ThreadsCome|Twice"},
		Env:     []string{"PERIGEE_LAB=required"},
		Modules: []string{"sch_netem"},
		Timeout: 5 * time.Minute,
		Output:  &out, Boot: &boot,
	})
	if err != nil || code != 0 {
		t.Fatalf("exit %d: %v\n%s\n%s", code, err, boot.String(), out.String())
	}
	if text := out.String(); !strings.Contains(text, "--- PASS: TestNetemIsSet") || strings.Contains(text, "\n    --- SKIP: TestNetemIsSet") {
		t.Errorf("netem was not tried:\n%s", text)
	}
	t.Log(out.String())
}

func raced() bool {
	info, _ := debug.ReadBuildInfo()
	return info != nil && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}
