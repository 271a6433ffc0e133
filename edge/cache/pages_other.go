//go:build !linux

package cache

import "errors"

type mapped struct{}

const slabsHere = false

// pagesLimit is 0: elsewhere than on Linux bodies stay on the heap.
func pagesLimit() int64 { return 0 }

func newPages([]byte) (*pages, error) { return nil, errors.ErrUnsupported }

func newSlab(int64) (*pages, error) { return nil, errors.ErrUnsupported }

func (p *pages) together(int64, int64) {}

func (p *pages) seal() {}

func (p *pages) free() {}
