//go:build linux

package bench

import (
	"cmp"
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// maxLost is how much of its queries a DNS load may lose before its sample is void: a datagram may be lost by right.
const maxLost = 0.001

// parse reads what a tool printed. The error says that it is not understood; that something failed is Measured.Failed.
func parse(tool, out string) (Measured, error) {
	switch tool {
	case "wrk":
		return parseWrk(out)
	case "h2load":
		return parseH2load(out)
	case "dnsperf":
		return parseDnsperf(out)
	}
	return Measured{}, fmt.Errorf("the output of %q is not understood", tool)
}

// found is the submatches of a pattern in the text, as the field of which tool it is.
func found(tool, field, pattern, out string) ([]string, error) {
	m := regexp.MustCompile(pattern).FindStringSubmatch(out)
	if m == nil {
		return nil, fmt.Errorf("%s printed no %s: %q", tool, field, lastLine(out))
	}
	return m[1:], nil
}

// parseWrk reads what wrk 4 prints with --latency.
func parseWrk(out string) (m Measured, err error) {
	total, err := found("wrk", "number of requests", `(?m)^\s*(\d+) requests in `, out)
	if err != nil {
		return m, err
	}
	rate, err := found("wrk", "rate", `(?m)^Requests/sec:\s+([0-9.]+)`, out)
	if err != nil {
		return m, err
	}
	m.Count, _ = strconv.ParseInt(total[0], 10, 64)
	if m.Value, err = strconv.ParseFloat(rate[0], 64); err != nil {
		return m, fmt.Errorf("rate of wrk: %w", err)
	}
	read, err := found("wrk", "number of bytes", `requests in [^,]+, ([0-9.]+)([KMGTP]?)B read`, out)
	if err != nil {
		return m, err
	}
	n, err := strconv.ParseFloat(read[0], 64)
	if err != nil {
		return m, fmt.Errorf("bytes of wrk: %w", err)
	}
	m.Bytes = int64(n * math.Pow(1024, float64(strings.Index(" KMGTP", cmp.Or(read[1], " ")))))
	for _, p := range []struct {
		pattern string
		into    *time.Duration
	}{{`(?m)^\s+Latency\s+([0-9.]+[a-z]+)`, &m.Mean}, {`(?m)^\s+50%\s+([0-9.]+[a-z]+)`, &m.P50}, {`(?m)^\s+99%\s+([0-9.]+[a-z]+)`, &m.P99}} {
		if text, err := found("wrk", "latency", p.pattern, out); err == nil {
			*p.into, _ = time.ParseDuration(text[0])
		}
	}
	var faults []string
	if line, err := found("wrk", "", `(?m)^\s*(Socket errors: .*)$`, out); err == nil {
		faults = append(faults, strings.TrimSpace(line[0]))
	}
	if line, err := found("wrk", "", `(?m)^\s*(Non-2xx or 3xx responses: \d+)`, out); err == nil {
		faults = append(faults, line[0])
	}
	m.Failed = strings.Join(faults, "; ")
	return m, nil
}

// parseH2load reads what h2load of nghttp2 1.x prints.
func parseH2load(out string) (m Measured, err error) {
	rate, err := found("h2load", "rate", `finished in [^,]+, ([0-9.]+) req/s`, out)
	if err != nil {
		return m, err
	}
	counts, err := found("h2load", "counts", `requests: (\d+) total, \d+ started, (\d+) done, (\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout`, out)
	if err != nil {
		return m, err
	}
	codes, err := found("h2load", "status codes", `status codes: (\d+) 2xx, (\d+) 3xx, (\d+) 4xx, (\d+) 5xx`, out)
	if err != nil {
		return m, err
	}
	if m.Value, err = strconv.ParseFloat(rate[0], 64); err != nil {
		return m, fmt.Errorf("rate of h2load: %w", err)
	}
	m.Count, _ = strconv.ParseInt(counts[2], 10, 64)
	if text, err := found("h2load", "", `traffic: \S+ \((\d+)\) total`, out); err == nil {
		m.Bytes, _ = strconv.ParseInt(text[0], 10, 64)
	}
	if text, err := found("h2load", "", `time for request:\s+\S+\s+\S+\s+([0-9.]+[a-z]+)`, out); err == nil {
		m.Mean, _ = time.ParseDuration(text[0])
	}
	for i, what := range []string{"failed", "errored", "timed out"} {
		if n := counts[3+i]; n != "0" {
			m.Failed += n + " " + what + "; "
		}
	}
	for i, what := range []string{"3xx", "4xx", "5xx"} {
		if n := codes[1+i]; n != "0" {
			m.Failed += n + " answered " + what + "; "
		}
	}
	m.Failed = strings.TrimSuffix(m.Failed, "; ")
	return m, nil
}

// parseDnsperf reads what dnsperf 2 prints.
func parseDnsperf(out string) (m Measured, err error) {
	sent, err := found("dnsperf", "queries sent", `Queries sent:\s+(\d+)`, out)
	if err != nil {
		return m, err
	}
	done, err := found("dnsperf", "queries completed", `Queries completed:\s+(\d+)`, out)
	if err != nil {
		return m, err
	}
	lost, err := found("dnsperf", "queries lost", `Queries lost:\s+(\d+)`, out)
	if err != nil {
		return m, err
	}
	rate, err := found("dnsperf", "rate", `Queries per second:\s+([0-9.]+)`, out)
	if err != nil {
		return m, err
	}
	if m.Value, err = strconv.ParseFloat(rate[0], 64); err != nil {
		return m, fmt.Errorf("rate of dnsperf: %w", err)
	}
	m.Count, _ = strconv.ParseInt(done[0], 10, 64)
	if text, err := found("dnsperf", "", `Average Latency \(s\):\s+([0-9.]+)`, out); err == nil {
		m.Mean, _ = time.ParseDuration(text[0] + "s")
	}
	var faults []string
	all, _ := strconv.ParseFloat(sent[0], 64)
	if n, _ := strconv.ParseFloat(lost[0], 64); n > maxLost*all {
		faults = append(faults, lost[0]+" of "+sent[0]+" queries lost")
	}
	if line, err := found("dnsperf", "", `Response codes:[ \t]+(.*)`, out); err == nil {
		for part := range strings.SplitSeq(line[0], ",") {
			if part = strings.TrimSpace(part); part != "" && !strings.HasPrefix(part, "NOERROR ") {
				faults = append(faults, "answered "+part)
			}
		}
	}
	m.Failed = strings.Join(faults, "; ")
	return m, nil
}
