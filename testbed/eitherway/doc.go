// Package eitherway is for tests of who carries flows by goroutines, or has a loop (origin/relay/loop) carry them: what is told of them must be the same.
package eitherway
