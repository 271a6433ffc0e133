//go:build linux

package bench

import (
	"context"
	"fmt"
	"io"
	"math"
	"net"
	"testing"
	"time"
)

func TestJainsIndexIsOneWhereAllGetTheSame(t *testing.T) {
	for _, c := range []struct {
		shares []int64
		want   float64
	}{
		{[]int64{5, 5, 5, 5}, 1},
		{[]int64{4, 0, 0, 0}, 0.25},
		{[]int64{1, 3}, 0.8},
		{[]int64{0, 0}, 0},
	} {
		if got := jain(c.shares); math.Abs(got-c.want) > 1e-9 {
			t.Errorf("of %v it is %v, want %v", c.shares, got, c.want)
		}
	}
}

func TestACrowdIsMeasuredBesideOneFlow(t *testing.T) {
	relay, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer relay.Close()
	port, err := freePort("127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	target := fmt.Sprintf("127.0.0.1:%d", port)
	go func() {
		for {
			c, err := relay.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				to, err := net.Dial("tcp", target)
				if err != nil {
					return
				}
				defer to.Close()
				io.Copy(c, to)
			}()
		}
	}()
	got, err := crowd{address: relay.Addr().String(), target: target, flows: 8, last: time.Second}.run(context.Background())
	if err != nil || got.bytes == 0 || got.total <= 0 || got.fair <= 0.125 || got.fair > 1 {
		t.Errorf("got %+v, %v", got, err)
	}
}
