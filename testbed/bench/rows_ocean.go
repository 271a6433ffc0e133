//go:build linux

package bench

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// oceanRows are about flows over long paths that lose packets, beside TCP without anybody in between.
func oceanRows() (rows []Row) {
	const cubic, bbr = "go-direct-cubic", "go-direct-bbr"
	for _, rtt := range []time.Duration{80 * time.Millisecond, 150 * time.Millisecond, 250 * time.Millisecond} {
		for _, loses := range []struct {
			name string
			loss float64
		}{{"clean", 0}, {"lossy", 0.001}, {"bad", 0.01}} {
			var parts []Part
			for _, link := range []string{"", ", new link"} {
				for _, flow := range []string{"first byte", "100 KB", "1 MB", "50 MB"} {
					goals := []Goal{{cubic, 1.05}, {bbr, 1.05}}
					if loses.loss > 0 && (flow == "100 KB" || flow == "1 MB") {
						goals = []Goal{{cubic, 0.4}, {bbr, 0.8}}
					}
					parts = append(parts, Part{flow + link, goals})
				}
			}
			rows = append(rows, Row{
				Name: fmt.Sprintf("ocean-%d-%s", rtt.Milliseconds(), loses.name),
				Work: fmt.Sprintf("a flow through two nodes over an emulated ocean of %v and 300 Mbit/s that loses %s %% of packets each way, from dialling on, by a link that has carried something and by a new one", rtt, strings.TrimSuffix(fmt.Sprintf("%.1f", 100*loses.loss), ".0")),
				Unit: "seconds", Less: true, Parts: parts, Every: 2, Takes: oceanTakes, Lacks: lacksOcean,
				Around: func(ctx context.Context, s *Stage) (func(), error) { return openOcean(ctx, s, rtt, loses.loss) },
				Load:   Load{Tool: "own", Args: []string{"cross"}, Own: cross},
				Check: func(ctx context.Context, s Stage) error {
					first, last, err := s.proc.crosses.ask(ctx, s, oceanSmall, toolTime)
					if err == nil && (first.Over || last.Over) {
						err = fmt.Errorf("%d bytes do not come in %v", oceanSmall, toolTime)
					}
					return err
				},
				Ours: oursOverOcean(), Peers: []Peer{direct(vendBBR), direct(vendCUBIC)},
			})
		}
	}
	return rows
}
