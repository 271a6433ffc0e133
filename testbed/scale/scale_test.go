package scale

import (
	"flag"
	"fmt"
	"math"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// make scale gives the sizes.
var sizes = flag.String("sizes", "", "how many nodes the fleets have, like 10,100,1000, the smallest first; then the table is printed, and nothing is short")

func TestMain(m *testing.M) {
	flag.Parse()
	runtime.MemProfileRate = 16 << 10 // from the beginning, or what was allocated before counts wrong
	os.Exit(m.Run())
}

// TestAFleetGrows runs one small fleet through everything, or those of -sizes.
func TestAFleetGrows(t *testing.T) {
	fleets, long := []int{10}, *sizes != ""
	if long {
		fleets = nil
		for size := range strings.SplitSeq(*sizes, ",") {
			n, err := strconv.Atoi(size)
			if err != nil {
				t.Fatal(err)
			}
			fleets = append(fleets, n)
		}
	}
	var found []Figures
	for _, size := range fleets {
		synctest.Test(t, func(t *testing.T) {
			c := Config{Nodes: size, Seed: 1, Say: func(line string) { t.Log(line) }}
			if long {
				if size >= 500 { // or it takes hours
					c.Times = 5
				}
				c.Say = func(line string) { fmt.Fprintln(os.Stderr, line) }
			} else {
				c.Rest, c.Times = 10*time.Second, 3
			}
			figures, err := Run(t.Context(), c)
			if err != nil {
				t.Errorf("%d nodes: %v", size, err)
			}
			found = append(found, figures)
		})
	}
	if long {
		fmt.Print(Markdown(found))
	}
}

func TestTheTableSaysHowFiguresGrow(t *testing.T) {
	fleets := []Figures{
		{10, []Figure{{"a", "median, worst", seconds, 0.5, 1}, one("b", bytes, 1000), one("c", count, 0), one("d", kilobytes, 5)}},
		{100, []Figure{{"a", "median, worst", seconds, 0.5, 1.04}, one("b", bytes, 10000), one("c", count, 0), one("d", kilobytes, 50)}},
		{1000, []Figure{{"a", "median, worst", seconds, 0.71, 2.08}, one("b", bytes, 1000000), one("c", count, 0), one("d", kilobytes, math.NaN())}},
	}
	want := `| nodes | 10 | 100 | 1,000 | grows |
|---|---|---|---|---|
| a (s; median, worst) | 0.50, 1.0 | 0.50, 1.0 | 0.71, 2.1 | n^0.3 |
| b (B) | 1,000 | 10,000 | 1,000,000 | n^2.0 |
| c | 0 | 0 | 0 | – |
| d (kB) | 5.0 | 50 | – | n^1.0 |
`
	if got := Markdown(fleets); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}
