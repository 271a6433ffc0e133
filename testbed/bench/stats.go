//go:build linux

package bench

import (
	"math"
	"slices"
)

// Figure is several samples of one thing.
type Figure struct {
	N      int     `json:"n"`
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
	// Low and High are order statistics between which the true median lies with that confidence, whatever the distribution. With few
	// samples they are the least and the most, and the confidence is what those give.
	Low        float64 `json:"low"`
	High       float64 `json:"high"`
	Confidence float64 `json:"confidence"`
}

// wanted is the confidence of intervals where there are samples enough.
const wanted = 0.95

// figureOf sums up samples. None: all is 0.
func figureOf(samples []float64) Figure {
	n := len(samples)
	if n == 0 {
		return Figure{}
	}
	sorted := slices.Sorted(slices.Values(samples))
	f := Figure{N: n, Min: sorted[0], Max: sorted[n-1], Median: (sorted[(n-1)/2] + sorted[n/2]) / 2}
	// The median lies between the k-th smallest and the k-th largest unless fewer than k samples fell on one side of it: a sum of binomials.
	k, confidence := 1, max(0, 1-2*tail(n, 0))
	for next := 2; next <= n/2; next++ {
		c := 1 - 2*tail(n, next-1)
		if c < wanted {
			break
		}
		k, confidence = next, c
	}
	f.Low, f.High, f.Confidence = sorted[k-1], sorted[n-k], confidence
	return f
}

// tail is the chance that at most k of n fair coins fall on heads.
func tail(n, k int) float64 {
	sum, term := 0.0, math.Pow(0.5, float64(n))
	for i := 0; i <= k; i++ {
		sum += term
		term *= float64(n-i) / float64(i+1)
	}
	return sum
}
