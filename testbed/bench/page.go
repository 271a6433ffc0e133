//go:build linux

package bench

import (
	"bytes"
	"encoding/json"
	"fmt"
	"html/template"
	"io"
)

// HTML writes the report as one page that needs no other file.
func (r *Report) HTML(w io.Writer) error {
	t, err := template.New("page").Funcs(template.FuncMap{
		"chart": chart, "thousands": thousands, "latency": latency, "first": firstLine, "short": short,
		"sorted": RowResult.sorted, "ratio": Figure.ratio, "interval": Figure.interval,
		"remarks": PeerResult.remarks,
		"line":    RowResult.line,
		"paced":   RowResult.paced,
		"void":    PeerResult.firstVoid,
		"seconds": PeerResult.seconds, "beside": RowResult.beside, "verdict": RowResult.verdict,
		"units": Micro.units,
		"value": func(m Micro, unit string) Figure { return m.Values[unit] },
	}).Parse(pageText)
	if err != nil {
		return err
	}
	var data bytes.Buffer
	if err := json.NewEncoder(&data).Encode(r); err != nil { // escapes <, > and &: it can stand in a script
		return err
	}
	return t.Execute(w, struct {
		*Report
		Data template.JS
	}{r, template.JS(data.String())})
}

// bar is one server in a row's chart, in the chart's units.
type bar struct {
	Label, Value     string
	Ours             bool
	Y, Middle        int
	Width, Low, High float64
	Title            string
	Spread           bool
	Yield            float64 // where the ratio by CPU stands; 0: nowhere
}

// picture is a row's chart: ratios as bars from 0, intervals as whiskers, a line at ours.
type picture struct {
	Height, Bottom int
	One            float64
	Bars           []bar
	Label          string
}

const (
	chartWidth = 440.0
	nameWidth  = 104.0
	valueWidth = 56.0
	barHeight  = 27
)

// chart lays out the chart of a row; one without bars is left out.
func chart(r RowResult) picture {
	most := 1.0
	for _, p := range r.Peers {
		if p.Ratio.N > 0 {
			most = max(most, p.Ratio.High, p.Yield.Median)
		}
	}
	x := func(ratio float64) float64 { return nameWidth + ratio/most*(chartWidth-nameWidth-valueWidth) }
	c := picture{One: x(1), Label: "Ratios to ours: "}
	for _, p := range r.sorted() {
		if p.Ratio.N == 0 {
			continue
		}
		y := 8 + len(c.Bars)*barHeight
		b := bar{Label: p.Name, Ours: p.Ours, Y: y, Middle: y + 9, Width: x(p.Ratio.Median) - nameWidth, Low: x(p.Ratio.Low), High: x(p.Ratio.High), Value: fmt.Sprintf("%.2f×", p.Ratio.Median), Spread: !p.Ours,
			Title: fmt.Sprintf("%s: %.2f times ours, interval %.2f to %.2f, samples %.2f to %.2f; %s %s", p.Name, p.Ratio.Median, p.Ratio.Low, p.Ratio.High, p.Ratio.Min, p.Ratio.Max, thousands(p.Value.Median), r.Unit)}
		if p.Yield.N > 0 && !p.Ours {
			b.Yield = x(p.Yield.Median)
			b.Title += fmt.Sprintf("; by CPU %.2f times ours", p.Yield.Median)
		}
		if p.Ours {
			b.Value = "1×"
		}
		c.Bars = append(c.Bars, b)
		c.Label += p.Name + " " + b.Value + " "
	}
	c.Bottom = 8 + len(c.Bars)*barHeight
	c.Height = c.Bottom + 18
	return c
}

const pageText = `<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Perigee beside others, {{.Began.Format "2006-01-02 15:04"}}</title>
<style>
:root { color-scheme: light dark; --paper: #fff; --ink: #1b2330; --soft: #566070; --line: #d5dae1; --card: #f6f8fa; --ours: #0b6bcb; --others: #8793a3; --warn: #8a4b00; --warnback: #fff3df; }
@media (prefers-color-scheme: dark) { :root { --paper: #10151c; --ink: #e6eaf0; --soft: #a3adbb; --line: #333d4a; --card: #171e27; --ours: #5aa9f5; --others: #77849a; --warn: #ffc97a; --warnback: #33260f; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; font-variant-numeric: tabular-nums; }
main { max-width: 1080px; margin: 0 auto; padding: 24px 16px 64px; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 8px; } h2 { font-size: 1.15rem; margin: 0; } p { margin: 4px 0 12px; }
.soft { color: var(--soft); }
section { margin: 20px 0; padding: 16px; background: var(--card); border: 1px solid var(--line); border-radius: 8px; break-inside: avoid; }
.warn { background: var(--warnback); color: var(--warn); border-color: currentColor; } .warn ul { margin: 4px 0 0; padding-left: 20px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .875rem; }
th, td { text-align: right; padding: 4px 10px; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { font-weight: 600; color: var(--soft); } th:first-child, td:first-child, td.text, th.text { text-align: left; } td.text { white-space: normal; min-width: 14em; color: var(--soft); }
.goals { margin: 10px 0; padding-left: 18px; font-size: .875rem; } .missed { color: var(--warn); } i { font-style: normal; font-weight: 400; color: var(--soft); } .notes { margin: 10px 0; padding-left: 18px; font-size: .875rem; color: var(--soft); overflow-wrap: anywhere; } .notes b { color: var(--ink); font-weight: 600; }
tr.ours td { font-weight: 650; } tr.ours td:first-child { color: var(--ours); }
svg { width: 100%; max-width: 580px; height: auto; display: block; margin: 8px 0; }
svg text { fill: var(--ink); font: 13px system-ui, sans-serif; } svg .small { fill: var(--soft); font-size: 11px; }
.bar { fill: var(--others); } .bar.ours { fill: var(--ours); } .yield { fill: var(--card); stroke: var(--ink); stroke-width: 1.5; } .whisker { stroke: var(--ink); stroke-width: 1.5; fill: none; } .one { stroke: var(--ours); stroke-width: 1.5; stroke-dasharray: 4 3; }
code, pre { font: .85em/1.5 ui-monospace, monospace; overflow-wrap: anywhere; } pre { white-space: pre-wrap; margin: 4px 0; }
@media print { body { background: #fff; } section { border-color: #999; } }
</style>
<main>
<h1>Perigee beside others</h1>
<p class="soft">{{.Began.Format "2 January 2006, 15:04"}} UTC, in {{.Took}} · perigee {{.Ours}} · {{.Machine.CPU}}, {{.Machine.Cores}} cores, {{.Machine.Kernel}}, {{.Machine.Go}} · servers on core {{range $i, $c := .Machine.Servers}}{{if $i}}, {{end}}{{$c}}{{end}}, load on {{range $i, $c := .Machine.Loads}}{{if $i}}, {{end}}{{$c}}{{end}} · {{.Rounds}} rounds of {{.Seconds}} s each, in random order · load average {{printf "%.2f" .Machine.LoadBefore}} before, {{printf "%.2f" .Machine.LoadAfter}} after</p>
<p>A ratio above 1 means that the other does more than Perigee in the same time, or, where a time or a size is measured, takes more. Goals are said the other way round: how many times the other's figure Perigee's is. Bars are medians of the ratios in each round; whiskers are intervals in which the true median lies (order statistics). <b>CPU each</b> is what the server computed for one answer: it, and the ratio by it (◇), hold also where the load, not the server, was the limit. Every server gave the right answers before and after it was timed.</p>
{{- with .Goals}}<p><b>{{.}}.</b></p>{{end}}
{{- if .Warnings}}
<section class="warn"><h2>What these figures cannot say</h2><ul>{{range .Warnings}}<li>{{.}}</li>{{end}}</ul></section>
{{- end}}
{{- range .Rows}}{{$row := .}}
<section id="{{.Name}}"><h2>{{.Name}}</h2><p>{{.Work}}{{paced .}}</p>
{{- if .Skipped}}<p class="soft">Not measured: {{.Skipped}}.</p>{{else if .Parts}}
<div class="scroll"><table><thead><tr><th>{{.Unit}} <i>(min–max)</i></th>{{range .Peers}}<th>{{.Name}}</th>{{if not .Ours}}<th>ours to it <i>(interval)</i></th>{{end}}{{end}}</tr></thead><tbody>
{{- range $part := .Parts}}<tr><td>{{.Name}}</td>{{range .Peers}}<td>{{seconds .}}</td>{{if not .Ours}}{{$f := beside $part .}}<td{{with verdict $part .Name}} title="goals: {{.}}"{{if ne . "met"}} class="missed"{{end}}{{end}}>{{ratio $f}} <i>({{interval $f}})</i></td>{{end}}{{end}}</tr>{{end}}
</tbody></table></div>
<ul class="notes">{{range $p := .Peers}}{{if or .Note .Fault (void .)}}<li><b>{{.Name}}</b>: {{.Note}}{{range $i, $r := remarks . $row.Less}}{{if or $i $p.Note}}; {{end}}{{$r}}{{end}}.</li>{{end}}{{end}}</ul>
<ul class="goals">{{range $part := .Parts}}{{range .Goals}}{{if eq .Verdict "short"}}<li class="missed">Goal, {{$part.Name}}: {{line $part .}}</li>{{end}}{{end}}{{end}}</ul>
<p class="soft"><code>{{.Command}}</code></p>{{else}}
{{- with chart .}}{{$c := .}}{{if .Bars}}
<svg viewBox="0 0 440 {{.Height}}" role="img" aria-label="{{.Label}}">
{{- range .Bars}}<g><title>{{.Title}}</title><text x="98" y="{{.Middle}}" dy="5" text-anchor="end">{{.Label}}</text><rect class="bar{{if .Ours}} ours{{end}}" x="104" y="{{.Y}}" width="{{printf "%.1f" .Width}}" height="18" rx="2"/>
{{- if .Spread}}<path class="whisker" d="M{{printf "%.1f" .Low}} {{.Middle}}H{{printf "%.1f" .High}}m0-4v8M{{printf "%.1f" .Low}} {{.Middle}}m0-4v8"/>{{end}}{{if .Yield}}<path class="yield" d="M{{printf "%.1f" .Yield}} {{.Middle}}m0-7l6 7-6 7-6-7z"/>{{end}}<text x="438" y="{{.Middle}}" dy="5" text-anchor="end">{{.Value}}</text></g>{{end}}
<path class="one" d="M{{printf "%.1f" .One}} 0V{{.Bottom}}"/><text class="small" x="{{printf "%.1f" .One}}" y="{{.Bottom}}" dy="13" text-anchor="middle">ours</text></svg>{{end}}{{end}}
<div class="scroll"><table><thead><tr><th>server</th><th>{{.Unit}} <i>(min–max)</i></th><th>ratio <i>(interval)</i></th><th>CPU each</th><th>ratio by CPU <i>(interval)</i></th><th>mean</th><th>p99</th></tr></thead><tbody>
{{- range sorted .}}<tr{{if .Ours}} class="ours"{{end}}><td>{{.Name}} {{.Version}}</td>
{{- if .Value.N}}<td>{{thousands .Value.Median}} <i>({{thousands .Value.Min}}–{{thousands .Value.Max}})</i></td><td>{{if .Ours}}1{{else}}{{ratio .Ratio}} <i>({{interval .Ratio}})</i>{{end}}</td><td>{{printf "%.2f" .CPU.Median}} µs</td><td>{{if .Ours}}1{{else}}{{ratio .Yield}} <i>({{interval .Yield}})</i>{{end}}</td><td>{{latency .Mean}}</td><td>{{latency .P99}}</td>
{{- else}}<td>not measured</td><td></td><td></td><td></td><td></td><td></td>{{end}}</tr>{{end}}
</tbody></table></div>
<ul class="notes">{{range $p := sorted .}}{{if not .Value.N}}<li><b>{{.Name}}</b>: {{first .Fault (void .)}}.</li>{{else if or .Note (remarks . $row.Less)}}<li><b>{{.Name}}</b>: {{.Note}}{{range $i, $r := remarks . $row.Less}}{{if or $i $p.Note}}; {{end}}{{$r}}{{end}}.</li>{{end}}{{end}}</ul>
{{- with .Goals}}<ul class="goals">{{range .}}<li class="{{if eq .Verdict "short"}}missed{{end}}">Goal: {{line $row .}}</li>{{end}}</ul>{{end}}
{{- with .Absent}}<p class="soft">Not installed: {{range $i, $n := .}}{{if $i}}, {{end}}{{$n}}{{end}}.</p>{{end}}
<p class="soft"><code>{{.Command}}</code></p>{{end}}
</section>
{{- end}}
{{- if .Micro}}
<section><h2>Go benchmarks</h2><p>In one process, nobody beside: <code>go test -bench</code>. Medians, with least and most.</p><div class="scroll"><table><thead><tr><th>package</th><th class="text">benchmark</th><th class="text">figures</th></tr></thead><tbody>
{{- range .Micro}}{{$m := .}}<tr><td>{{.Package}}</td><td class="text">{{.Name}}</td><td class="text">{{range $i, $u := units .}}{{with value $m $u}}{{if $i}} · {{end}}{{short .Median}} {{$u}}{{if gt .N 1}} ({{short .Min}}–{{short .Max}}){{end}}{{end}}{{end}}</td></tr>{{end}}
</tbody></table></div></section>
{{- end}}
{{- if .Install}}
<section><h2>To measure what is missing too</h2>{{range .Install}}<pre>{{.}}</pre>{{end}}</section>
{{- end}}
<script type="application/json" id="data">{{.Data}}</script>
</main>
</html>
`
