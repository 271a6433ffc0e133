package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
)

func TestTheLastStateSurvivesARestart(t *testing.T) {
	dir := t.TempDir()
	if _, err := LoadLast(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("of an empty folder: %v", err)
	}
	s := &State{}
	for i := range 3 {
		if err := os.WriteFile(filepath.Join(dir, lastFile+".new"), []byte("left over"), 0o600); err != nil {
			t.Fatal(err)
		}
		s = must(t, s, Change{ID: fmt.Sprint(i), Author: "ada", Time: then, Put: []Object{put("k", fmt.Sprint(i), "content")}})
		if err := SaveLast(dir, s); err != nil {
			t.Fatal(err)
		}
		loaded, err := LoadLast(dir)
		if err != nil {
			t.Fatal(err)
		}
		if diff := gocmp.Diff(s, loaded, same); diff != "" {
			t.Fatal(diff)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("the folder holds %v, %v", entries, err)
	}
	if err := SaveLast(filepath.Join(dir, "none"), s); err == nil || !strings.Contains(err.Error(), lastFile) {
		t.Errorf("into no folder: %v", err)
	}
}

func TestADamagedLastStateIsRefusedByName(t *testing.T) {
	dir := t.TempDir()
	if err := SaveLast(dir, must(t, &State{}, Change{Time: then, Put: []Object{put("k", "a", "content")}})); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, lastFile)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	refused := func(what string, data []byte) {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := LoadLast(dir); err == nil || !strings.Contains(err.Error(), path) {
			t.Fatalf("%s: got %v", what, err)
		}
	}
	for i := range whole {
		flipped := append([]byte{}, whole...)
		flipped[i] ^= 1
		refused(fmt.Sprintf("a bit of byte %d", i), flipped)
		refused(fmt.Sprintf("cut at %d", i), whole[:i])
	}
	refused("longer", append(whole, 0))
}
