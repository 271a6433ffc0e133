package bed

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/perigee-net/perigee/testbed/netns"
)

// Down takes a bed down, by its name or its folder, whole or half built, whatever of it was killed. Nothing of it is left
// but the folder, if Config.Keep said so; that goes when it is taken down once more. A bed that is not there is down.
func Down(ctx context.Context, name string, say func(string)) error {
	if strings.Contains(name, "/") {
		s, err := readState(name)
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		name = s.World.Name
	}
	if err := checkName(name); err != nil {
		return err
	}
	release, err := claim(ctx, name)
	if err != nil {
		return err
	}
	defer release()
	return down(ctx, name, say, true)
}

// deletedAtOnce is how many namespaces are deleted at a time: the kernel waits for its readers in each.
const deletedAtOnce = 16

// down is Down by who holds the claim. Nodes get no time to leave in order: all of it ends.
func down(ctx context.Context, name string, say func(string), keep bool) error {
	names, err := netns.Names(prefix(name))
	if err != nil {
		return err
	}
	if len(names) > 0 && say != nil {
		say(fmt.Sprintf("taking down %d namespaces of testbed %s", len(names), name))
	}
	if err := end(ctx, name); err != nil {
		return err
	}
	errs := make([]error, len(names))
	places := make(chan struct{}, deletedAtOnce)
	var all sync.WaitGroup
	for i, n := range names {
		places <- struct{}{}
		all.Go(func() {
			defer func() { <-places }()
			errs[i] = netns.Remove(ctx, n)
		})
	}
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("take down testbed %s: %w", name, err)
	}
	dir := folder(name)
	if s, err := readState(dir); err == nil && s.Keep && keep && s.State != kept {
		s.State, s.Faults, s.Access = kept, nil, ""
		return errors.Join(os.RemoveAll(filepath.Join(dir, pumpSocket)), writeState(dir, s))
	}
	return erase(name)
}
