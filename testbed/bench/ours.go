//go:build linux

package bench

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/perigee-net/perigee/node/api"
)

// oursName is how the program that is measured is called in a report.
const oursName = "perigee"

// maxSocket bounds the path of a unix socket (unix(7): 108 bytes with a zero at the end).
const maxSocket = 107

// ours is a real node, alone, which runs a spec: the first text is filled with what the stage has, then applied.
func ours(spec func(s Stage) (string, error), args ...string) Peer {
	return Peer{Name: oursName, Start: func(ctx context.Context, s Stage) (*Process, error) {
		text, err := spec(s)
		if err != nil {
			return nil, err
		}
		var ports [3]int
		for i := range ports {
			if ports[i], err = s.freePort(); err != nil {
				return nil, err
			}
		}
		data := filepath.Join(s.Dir, "data")
		if socket := filepath.Join(data, api.Socket); len(socket) > maxSocket {
			return nil, fmt.Errorf("the path %s is too long for a unix socket: say a folder with a shorter one", socket)
		}
		argv := append([]string{s.Program, "node", "--data", data, "--bootstrap", "--name", "bench1", "--region", "bench", "--pop", "bench1",
			"--bind", s.Host, "--gossip", s.at(ports[0]), "--control", s.at(ports[1]), "--api", s.at(ports[2]), "--drain", "0s"}, args...)
		if s.run.Profile != "" {
			dir := filepath.Join(s.run.Profile, s.row)
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return nil, fmt.Errorf("make a folder for profiles: %w", err)
			}
			argv = append(argv, "--profile", dir)
		}
		p, err := s.Start(nil, argv...)
		if err != nil {
			return nil, err
		}
		if err := apply(ctx, filepath.Join(data, api.Socket), s.Fill(text), p); err != nil {
			p.Stop()
			return nil, err
		}
		return p, nil
	}}
}

// oursTwice is two real nodes of two regions: one takes flows, and sends them over the backbone to the other, which has their target. byTCP is
// when those of TCP go by a TCP connection each.
func oursTwice(protocol, byTCP string) Peer {
	spec := func(s Stage) (string, error) {
		text, err := relaySpec(protocol)(s)
		text = strings.Replace(text, "region: bench\nprotocol", "region: bench2\nprotocol", 1)
		text = strings.Replace(text, "endpointGroups: [{region: bench,", "endpointGroups: [{region: bench2,", 1)
		return strings.NewReplacer("name: bench\n", "name: bench2\n", "bench1", "bench2").Replace(region) + "---\n" + text, err
	}
	closed := []string{"--http", "", "--https", "", "--dns", "", "--flows-by-tcp", byTCP}
	first := ours(spec, append([]string{"--roles", "edge,voter"}, closed...)...)
	return Peer{Name: oursName, Start: func(ctx context.Context, s Stage) (*Process, error) {
		p, err := first.Start(ctx, s)
		if err != nil {
			return nil, err
		}
		if err := second(ctx, s.beyond(), p, closed); err != nil {
			p.Stop()
			return nil, err
		}
		return p, nil
	}}
}

// secondData is the folder of the other one's data.
const secondData = "data2"

// second has another node join the one that a process is.
func second(ctx context.Context, s Stage, p *Process, args []string) error {
	client, err := api.NewClient(filepath.Join(s.Dir, "data", api.Socket), api.Options{})
	if err != nil {
		return err
	}
	made, err := client.CreateToken(ctx, api.TokenRequest{})
	if err != nil {
		return fmt.Errorf("make a token: %w", err)
	}
	status, err := client.Status(ctx)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(status.Members, func(m api.MemberStatus) bool { return m.Name == "bench1" })
	if i < 0 {
		return fmt.Errorf("the node does not know itself: %+v", status.Members)
	}
	var ports [2]int
	for i := range ports {
		if ports[i], err = s.freePort(); err != nil {
			return err
		}
	}
	argv := append([]string{s.Program, "node", "--data", filepath.Join(s.Dir, secondData), "--join", status.Members[i].Control.String(), "--token", made.Token, "--name", "bench2", "--region", "bench2", "--pop", "bench2",
		"--roles", "origin", "--bind", s.Host, "--gossip", s.at(ports[0]), "--control", s.at(ports[1]), "--api", "", "--drain", "0s"}, args...)
	if s.run.Profile != "" {
		dir := filepath.Join(s.run.Profile, s.row, "second")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("make a folder for profiles: %w", err)
		}
		argv = append(argv, "--profile", dir)
	}
	other, err := s.Start(nil, argv...)
	if err != nil {
		return err
	}
	p.beside = append(p.beside, other)
	return nil
}

// changeTime is how long one of the changes may take in which a node is given its spec: some are of 100,000 records.
const changeTime = 5 * time.Minute

// apply gives a node its spec, as soon as it takes one, and waits until it runs.
func apply(ctx context.Context, socket, spec string, p *Process) error {
	client, err := api.NewClient(socket, api.Options{})
	if err != nil {
		return err
	}
	// One change has a bound, in bytes and in time (10 s), so the documents go in as many as fit.
	var files []api.File
	size := 0
	send := func() error {
		if len(files) == 0 {
			return nil
		}
		ctx, cancel := context.WithTimeout(ctx, changeTime)
		defer cancel()
		res, err := client.Apply(ctx, api.ApplyRequest{Files: files})
		if err != nil {
			return err
		}
		files, size = nil, 0
		waited, err := client.Wait(ctx, res.Revision, changeTime)
		if err == nil && !waited.Complete {
			err = fmt.Errorf("the node does not run revision %d: %+v", res.Revision, waited.Nodes)
		}
		return err
	}
	up, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	for { // until it serves
		status, err := client.Status(up)
		if err == nil && status.Leader != "" {
			break
		}
		if failed := p.Failed(); failed != nil {
			return failed
		}
		select {
		case <-up.Done():
			return fmt.Errorf("wait for the node: %w: %w\n%s", context.Cause(up), err, p.Log())
		case <-time.After(again):
		}
	}
	const most = 1 << 20
	for i, document := range strings.Split(spec, "\n---\n") {
		if size+len(document) > most {
			if err := send(); err != nil {
				return err
			}
		}
		files = append(files, api.File{Name: fmt.Sprintf("bench%d.yaml", i), Data: document})
		size += len(document)
	}
	if err := send(); err != nil {
		return fmt.Errorf("give the node its spec: %w", err)
	}
	return nil
}
