package backbone

import (
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/perigee-net/perigee/testbed/memnet"
)

// serveBlobs answers "blob" with as many bytes as the resource says.
func serveBlobs(b *Backbone) {
	b.Handle("blob", func(in *Incoming) { sendBlob(in.Accept(), in.Resource) })
}

// sendBlob sends as many bytes as are asked for, and closes.
func sendBlob(c net.Conn, asked string) {
	defer c.Close()
	size, _ := strconv.ParseInt(asked, 10, 64)
	chunk := make([]byte, 64<<10)
	for size > 0 {
		n, err := c.Write(chunk[:min(size, int64(len(chunk)))])
		if err != nil {
			return
		}
		size -= int64(n)
	}
	c.(interface{ CloseWrite() error }).CloseWrite()
}

// fetch is how long a flow of some bytes takes, from its dialling on, to its first byte and to its last.
func (w *world) fetch(b *Backbone, node string, size int) (first, last time.Duration) {
	begun := time.Now()
	c, err := b.DialEarly(w.Context(), node, Header{Service: "blob", Resource: strconv.Itoa(size)})
	if err != nil {
		w.Fatal(err)
	}
	defer c.Close()
	var one [1]byte
	if _, err := io.ReadFull(c, one[:]); err != nil {
		w.Fatal(err)
	}
	first = time.Since(begun)
	n, err := io.Copy(io.Discard, c)
	if err != nil || n != int64(size-1) {
		w.Fatalf("%d of %d bytes: %v", n+1, size, err)
	}
	return first, time.Since(begun)
}

// striped fetches one flow in equal parts by as many streams.
func (w *world) striped(b *Backbone, node string, size, parts int) (first, last time.Duration) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	for range parts {
		wg.Go(func() {
			f, l := w.fetch(b, node, size/parts)
			mu.Lock()
			defer mu.Unlock()
			if first == 0 || f < first {
				first = f
			}
			last = max(last, l)
		})
	}
	wg.Wait()
	return first, last
}

// unwarmed has nodes warm no link.
func unwarmed(nodes ...*Backbone) {
	for _, b := range nodes {
		for range warmAtOnce {
			b.warming <- struct{}{}
		}
	}
}

// TestMatrix measures flows over long and lossy paths of 300 Mbit/s in virtual time, each the first on its link, which is not warmed, when PERIGEE_MATRIX says how
// often each. Of the parity it prints how much was sent, repaired, and beyond repair. Five times take some five minutes.
func TestMatrix(t *testing.T) {
	runs, _ := strconv.Atoi(os.Getenv("PERIGEE_MATRIX"))
	if runs == 0 {
		return
	}
	ways := []struct {
		name     string
		carriers int
		plain    bool
		parts    int
	}{{"one", 1, true, 1}, {"eight", 8, true, 8}, {"parity", 1, false, 1}, {"four+parity", 4, false, 4}}
	for _, rtt := range []int{20, 80, 150, 250} {
		for _, loss := range []float64{0, 0.001, 0.01} {
			for _, size := range []int{100_000, 1_000_000, 50_000_000} {
				line := fmt.Sprintf("%3d ms %4.1f %% %5d KB", rtt, loss*100, size/1000)
				for _, way := range ways {
					var firsts, lasts []time.Duration
					var extra string
					for run := range runs {
						inWorldSeeded(t, uint64(run+1), func(w *world) {
							w.in.Link("icn", "iad", memnet.Path{Delay: time.Duration(rtt) * time.Millisecond / 2, Loss: loss, Rate: 300e6})
							icnC, iadC := w.config("icn", w.authority), w.config("iad", w.authority)
							icnC.Carriers, icnC.NoParity, iadC.NoParity = way.carriers, way.plain, way.plain
							icn, iad := w.openWith(icnC), w.openWith(iadC)
							defer icn.Close()
							defer iad.Close()
							serveBlobs(iad)
							unwarmed(icn, iad)
							icn.Keep(peers("iad"))
							w.until(icn, "iad", true)
							time.Sleep(3 * time.Second)
							first, last := w.striped(icn, "iad", size, way.parts)
							firsts, lasts = append(firsts, first), append(lasts, last)
							if !way.plain {
								synctest.Wait()
								a, b := icn.Counters(), iad.Counters()
								extra = fmt.Sprintf("(p%d r%d l%d)", b["backbone_parity_sent_total"], a["backbone_packets_repaired_total"], a["backbone_packets_beyond_repair_total"])
							}
						})
					}
					slices.Sort(firsts)
					slices.Sort(lasts)
					line += fmt.Sprintf(" | %s %.3f %.3f [%.3f-%.3f] %s", way.name, firsts[runs/2].Seconds(), lasts[runs/2].Seconds(), lasts[0].Seconds(), lasts[runs-1].Seconds(), extra)
				}
				fmt.Println(line)
			}
		}
	}
}

// TestYoungLinks measures the first flow over a link that came up so many round trips ago, of 300 Mbit/s in virtual time, when PERIGEE_YOUNG says how often each:
// in seconds, by a link that is not warmed and by one that is, median and spread. Three times take some two minutes.
func TestYoungLinks(t *testing.T) {
	runs, _ := strconv.Atoi(os.Getenv("PERIGEE_YOUNG"))
	if runs == 0 {
		return
	}
	for _, rtt := range []time.Duration{80 * ms, 150 * ms, 250 * ms} {
		for _, loss := range []float64{0, 0.001, 0.01} {
			for _, size := range []int{1, 100_000, 1_000_000} {
				line := fmt.Sprintf("%v %.1f %% %d", rtt, loss*100, size)
				for _, age := range []int{-1, 0, 1, 2, 3, 4, 6, 30} { // -1: whenever, and not warmed
					var lasts []time.Duration
					for run := range runs {
						inWorldSeeded(t, uint64(run+1), func(w *world) {
							w.in.Link("icn", "iad", memnet.Path{Delay: rtt / 2, Loss: loss, Rate: 300e6})
							icn, iad := w.open("icn"), w.open("iad")
							defer icn.Close()
							defer iad.Close()
							serveBlobs(iad)
							if age < 0 {
								unwarmed(icn, iad)
							}
							icn.Keep(peers("iad"))
							w.until(icn, "iad", true)
							time.Sleep(time.Duration(max(age, 0)) * rtt)
							_, last := w.fetch(icn, "iad", size)
							lasts = append(lasts, last)
						})
					}
					slices.Sort(lasts)
					line += fmt.Sprintf(" | %d: %.2f (%.2f–%.2f)", age, lasts[runs/2].Seconds(), lasts[0].Seconds(), lasts[runs-1].Seconds())
				}
				fmt.Println(line)
			}
		}
	}
}

// TestLargeFlows measures flows of 50 MB by QUIC over a link that has carried 1 MB, of 300 Mbit/s in virtual time, when PERIGEE_LARGE says how many each: all, in seconds, the least first.
// Eight each take a minute.
func TestLargeFlows(t *testing.T) {
	runs, _ := strconv.Atoi(os.Getenv("PERIGEE_LARGE"))
	for _, rtt := range []time.Duration{20 * ms, 80 * ms, 150 * ms, 250 * ms} {
		for _, loss := range []float64{0, 0.001, 0.01} {
			var lasts []float64
			for run := range runs {
				overOcean(t, uint64(run+1), memnet.Path{Delay: rtt / 2, Loss: loss, Rate: 300e6}, false, func(w *world, icn, iad *Backbone) {
					w.fetch(icn, "iad", 1_000_000)
					time.Sleep(time.Second)
					_, last := w.fetch(icn, "iad", 50_000_000)
					lasts = append(lasts, last.Seconds())
				})
			}
			if slices.Sort(lasts); runs > 0 {
				fmt.Printf("%v %.1f %% %.2f\n", rtt, loss*100, lasts)
			}
		}
	}
}
