// Package bench measures this program beside others that do the same work, on one machine: the servers on a core of their own, the load on
// the others, in turns, and as ratios to ours. A row is data: a work, a tool that makes the load, and who is measured; later work adds rows.
//
// It is not a measure of what a machine can do at most, nor of what a network adds, and a figure says nothing without the other figures of
// the same run. It promises that nobody is timed who does not give the right answer, that a sample in which anything failed counts for
// nothing and is said to, and that what disturbed the run stands in the report. All servers are processes that end with the run, in
// whatever way that ends; one that cannot be started stands in the report with the reason, and the others are measured.
package bench
