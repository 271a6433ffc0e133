//go:build !linux

package main

import (
	"errors"

	"github.com/spf13/cobra"
)

// newBench says where other programs are measured.
func newBench() *cobra.Command {
	return &cobra.Command{
		Use: "bench", Short: "Measure this program beside others that are installed (Linux only)",
		RunE: func(*cobra.Command, []string) error {
			return errors.New("programs are pinned to processors by Linux's means: run it on a Linux machine")
		},
	}
}

// newTestbed says where the laboratory is to be had.
func newTestbed() *cobra.Command {
	return &cobra.Command{
		Use: "testbed", Short: "Build an internet on this machine (Linux only)",
		RunE: func(*cobra.Command, []string) error {
			return errors.New("the testbed is made of Linux's network namespaces: run it on a Linux machine")
		},
	}
}
