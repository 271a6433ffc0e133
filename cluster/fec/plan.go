package fec

import "math"

const (
	// residual is the share of datagrams that may be lost for good: at a millionth, a sender that halves its window at each loss
	// still comes to windows of more than a thousand.
	residual = 1e-6

	// MaxLoss is the loss that is made good at most. What is beyond it the sender's congestion control has to see.
	MaxLoss = 0.03
)

// Parity is how many of parity a group of n datagrams needs, so that no more than a millionth of them is lost for good where
// each is lost with the probability loss, parity too: 0 where there is no loss, MaxParity at most. Above MaxLoss it is as at it.
func Parity(n int, loss float64) int {
	if n <= 0 || loss <= 0 {
		return 0
	}
	loss = min(loss, MaxLoss)
	for m := 1; m < MaxParity; m++ {
		if beyond(n+m, m, loss) <= residual*float64(n) {
			return m
		}
	}
	return MaxParity
}

// beyond is the probability that of n more than m are lost.
func beyond(n, m int, loss float64) float64 {
	// The first terms by themselves: one less the others would be lost in rounding.
	term, sum := math.Pow(1-loss, float64(n)), 0.0
	for k := 0; k <= n; k++ {
		if k > m {
			sum += term
		}
		term *= float64(n-k) / float64(k+1) * loss / (1 - loss)
	}
	return sum
}
