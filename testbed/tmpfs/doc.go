// Package tmpfs gives a test a small disk of its own, which it can fill.
package tmpfs
