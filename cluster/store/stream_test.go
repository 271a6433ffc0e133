package store

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
)

// stuckPipeline has no room for a request until it is closed.
type stuckPipeline struct {
	raft.AppendPipeline
	closed chan struct{}
}

func (p stuckPipeline) AppendEntries(*raft.AppendEntriesRequest, *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	<-p.closed
	return nil, raft.ErrPipelineShutdown
}

func (p stuckPipeline) Close() error {
	close(p.closed)
	return nil
}

func TestARequestWhoseTurnDoesNotComeEndsThePipeline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, began := pipeline{stuckPipeline{closed: make(chan struct{})}}, time.Now()
		if _, err := p.AppendEntries(new(raft.AppendEntriesRequest), nil); !errors.Is(err, raft.ErrPipelineShutdown) {
			t.Errorf("got %v", err)
		}
		if took := time.Since(began); took != turnTimeout {
			t.Errorf("after %v", took)
		}
	})
}
