package perigee

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/perigee-net/perigee/cluster/spec"
)

func TestTheExamplesAreValid(t *testing.T) {
	files, err := filepath.Glob("deployments/examples/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("found %d examples: %v", len(files), err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		docs, err := spec.Split(file, data)
		if err == nil {
			_, err = spec.Build(1, docs)
		}
		if err != nil {
			t.Error(err)
		}
	}
}
