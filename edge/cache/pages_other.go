//go:build !linux

package cache

import "errors"

type mapped struct{}

// pagesLimit is 0: elsewhere than on Linux bodies stay on the heap.
func pagesLimit() int64 { return 0 }

func newPages([]byte) (*pages, error) { return nil, errors.ErrUnsupported }

func (p *pages) free() {}
