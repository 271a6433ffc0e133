//go:build linux

package bench

import (
	"math"
	"math/rand/v2"
	"testing"
)

func TestFiguresOfFewSamples(t *testing.T) {
	for _, test := range []struct {
		samples []float64
		want    Figure
	}{
		{nil, Figure{}},
		{[]float64{5}, Figure{N: 1, Median: 5, Min: 5, Max: 5, Low: 5, High: 5}},
		{[]float64{4, 2}, Figure{N: 2, Median: 3, Min: 2, Max: 4, Low: 2, High: 4, Confidence: 0.5}},
		{[]float64{3, 1, 2, 5, 4}, Figure{N: 5, Median: 3, Min: 1, Max: 5, Low: 1, High: 5, Confidence: 0.9375}},
		{[]float64{6, 3, 1, 2, 5, 4}, Figure{N: 6, Median: 3.5, Min: 1, Max: 6, Low: 1, High: 6, Confidence: 0.96875}},
		{[]float64{9, 8, 7, 6, 3, 1, 2, 5, 4}, Figure{N: 9, Median: 5, Min: 1, Max: 9, Low: 2, High: 8, Confidence: 1 - 20.0/512}},
	} {
		if got := figureOf(test.samples); got != test.want {
			t.Errorf("%v: got %+v, want %+v", test.samples, got, test.want)
		}
	}
}

// The distribution is a bad one, with a long tail: order statistics do not care.
func TestIntervalsHoldTheMedianAsOftenAsTheySay(t *testing.T) {
	dice := rand.New(rand.NewPCG(1, 2))
	median := math.Exp(0) // of a log-normal distribution
	for _, n := range []int{3, 5, 7, 12, 30} {
		const tries = 20000
		held, says := 0, 0.0
		for range tries {
			samples := make([]float64, n)
			for i := range samples {
				samples[i] = math.Exp(2 * dice.NormFloat64())
			}
			f := figureOf(samples)
			if f.Low <= median && median <= f.High {
				held++
			}
			says = f.Confidence
		}
		if got := float64(held) / tries; math.Abs(got-says) > 0.01 {
			t.Errorf("%d samples: held in %.3f of all tries, says %.3f", n, got, says)
		}
	}
}
