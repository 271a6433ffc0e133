package page

import (
	"bytes"
	"context"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"

	"github.com/perigee-net/perigee/testbed/gate"
)

// browser starts chromium for a test. Without it the test is skipped, or fails where the laboratory is required.
func browser(t *testing.T) context.Context {
	t.Helper()
	gate.Wanted(t)
	gate.Programs(t, map[string]string{"chromium": "chromium"})
	program, err := exec.LookPath("chromium")
	if err != nil {
		t.Fatal(err)
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(program), chromedp.UserDataDir(t.TempDir()),
		chromedp.NoSandbox, chromedp.DisableGPU, chromedp.Flag("disable-quic", true), chromedp.Flag("disable-component-update", true))
	ctx, cancel := chromedp.NewExecAllocator(context.Background(), options...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	if err := chromedp.Do(ctx); err != nil {
		t.Fatalf("start chromium: %v", err)
	}
	t.Cleanup(func() { chromedp.Cancel(ctx) }) // waits for its end
	ctx, cancel = context.WithTimeout(ctx, 90*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// seen is what a page did that it should not.
type seen struct {
	mu   sync.Mutex
	list []string
}

func (s *seen) add(format string, a ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.list = append(s.list, fmt.Sprintf(format, a...))
}

func (s *seen) all() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.list, "\n")
}

// open shows a run in a browser of that width, and watches for requests, errors and what the console says.
func open(t *testing.T, ctx context.Context, r Run, width int64, dark bool) *seen {
	t.Helper()
	var b bytes.Buffer
	if err := r.HTML(&b); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "run.html")
	if err := os.WriteFile(file, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	its := &seen{}
	listening, stop := context.WithCancel(ctx)
	t.Cleanup(stop)
	err := chromedp.Listen(listening, func(e any) {
		switch e := e.(type) {
		case *network.EventRequestWillBeSent:
			if u, err := url.Parse(e.Request.URL); err != nil || u.Scheme != "data" && u.Path != file {
				its.add("asked for %s", e.Request.URL)
			}
		case *runtime.EventConsoleAPICalled:
			its.add("console: %s", e.Type)
		case *runtime.EventExceptionThrown:
			its.add("exception: %s", e.ExceptionDetails.Text)
		case *log.EventEntryAdded:
			its.add("log: %s %s", e.Entry.Level, e.Entry.Text)
		case *page.EventJavascriptDialogOpening:
			its.add("dialog: %s", e.Message)
		}
	})
	if err != nil {
		t.Fatalf("listen to the page: %v", err)
	}
	scheme := "light"
	if dark {
		scheme = "dark"
	}
	tell(t, ctx, network.Enable, network.EnableParams{})
	tell(t, ctx, log.Enable, cdp.Empty{})
	tell(t, ctx, runtime.Enable, cdp.Empty{})
	tell(t, ctx, page.Enable, page.EnableParams{})
	tell(t, ctx, emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{Width: width, Height: 900, DeviceScaleFactor: 1, Mobile: width < 600})
	tell(t, ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}})
	err = chromedp.Do(ctx, chromedp.Navigate("file://"+file), chromedp.WaitReady("#run"))
	if err != nil {
		t.Fatalf("open the page: %v", err)
	}
	return its
}

func tell[P, R any](t *testing.T, ctx context.Context, command cdp.Command[P, R], with P) {
	t.Helper()
	if _, err := chromedp.Call(ctx, command, with); err != nil {
		t.Fatalf("%s: %v", command.Method, err)
	}
}

// picture keeps a screenshot of the whole page in the folder PERIGEE_PAGES, if there is one, to be looked at.
func picture(t *testing.T, ctx context.Context, name string) {
	t.Helper()
	folder := os.Getenv("PERIGEE_PAGES")
	if folder == "" {
		return
	}
	png, err := chromedp.Run(ctx, chromedp.FullScreenshot(100))
	if err != nil {
		t.Fatalf("take a picture: %v", err)
	}
	if err := os.WriteFile(filepath.Join(folder, name+".png"), png, 0o644); err != nil {
		t.Fatal(err)
	}
}

// ask evaluates an expression in the page.
func ask[T any](t *testing.T, ctx context.Context, expression string) T {
	t.Helper()
	v, err := chromedp.Run(ctx, chromedp.Evaluate[T](expression))
	if err != nil {
		t.Fatalf("ask the page: %v", err)
	}
	return v
}

var shows = []struct {
	name  string
	width int64
	dark  bool
}{
	{"wide-light", 1280, false}, {"wide-dark", 1280, true}, {"phone-light", 390, false}, {"phone-dark", 390, true},
}

// overlaps lists pairs of texts of a drawing that cover each other by more than an eighth of the smaller, and texts that
// stand out of their drawing.
const overlaps = `[...document.querySelectorAll("svg")].flatMap(svg => {
	const frame = svg.getBoundingClientRect();
	if (frame.width < 40) return [];
	const all = [...svg.querySelectorAll("text")].map(e => ({ text: e.textContent, box: e.getBoundingClientRect() })).filter(t => t.box.width > 0);
	const bad = [];
	all.forEach((a, i) => {
		if (a.box.left < frame.left - 2 || a.box.right > frame.right + 2 || a.box.top < frame.top - 2 || a.box.bottom > frame.bottom + 2)
			bad.push("“" + a.text + "” stands out of its drawing");
		all.slice(i + 1).forEach(b => {
			const w = Math.min(a.box.right, b.box.right) - Math.max(a.box.left, b.box.left);
			const h = Math.min(a.box.bottom, b.box.bottom) - Math.max(a.box.top, b.box.top);
			if (w > 0 && h > 0 && w * h > Math.min(a.box.width * a.box.height, b.box.width * b.box.height) / 8)
				bad.push("“" + a.text + "” and “" + b.text + "” in " + (svg.querySelector("title") || {}).textContent);
		});
	});
	return bad;
})`

// pale lists texts whose contrast with what is under them is below that of WCAG 2.2, 1.4.3 (4.5, or 3 if large). What is
// under a text of a drawing is its halo, or the form that is painted there.
const pale = `(() => {
	const probe = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
	const rgb = c => { probe.clearRect(0, 0, 1, 1); probe.fillStyle = c; probe.fillRect(0, 0, 1, 1); return [...probe.getImageData(0, 0, 1, 1).data]; };
	const light = c => { const f = c.slice(0, 3).map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * f[0] + 0.7152 * f[1] + 0.0722 * f[2]; };
	const contrast = (a, b) => { const [x, y] = [light(a), light(b)].sort((p, q) => q - p); return (x + 0.05) / (y + 0.05); };
	const ground = e => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor); if (c[3] > 250) return c; } return [255, 255, 255, 255]; };
	const bad = new Set();
	const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
	for (let node; node = walk.nextNode();) {
		const e = node.parentElement, style = getComputedStyle(e);
		if (!node.textContent.trim() || ["SCRIPT", "STYLE", "title"].includes(e.tagName)) continue;
		const range = document.createRange(); range.selectNode(node);
		const box = range.getBoundingClientRect();
		if (box.width < 1 || style.visibility === "hidden") continue;
		const svg = e.closest("svg");
		let front = svg ? style.fill : style.color, back = ground(e);
		if (svg) {
			const text = e.closest("text"), halo = getComputedStyle(text);
			if (halo.stroke !== "none") back = rgb(halo.stroke);
			else for (const under of document.elementsFromPoint(box.left + Math.min(3, box.width / 2), box.top + box.height / 2)) {
				if (!(under instanceof SVGGeometryElement)) continue;
				const fill = getComputedStyle(under).fill;
				if (fill === "none" || fill.startsWith("url")) continue;
				back = rgb(fill); break;
			}
		}
		const c = contrast(rgb(front), back), size = parseFloat(style.fontSize);
		if (c < (size >= 24 || size >= 18.7 && style.fontWeight >= 700 ? 3 : 4.5))
			bad.add(c.toFixed(2) + ": " + node.textContent.trim().slice(0, 40) + " (" + (e.className.baseVal ?? e.className) + ", " + front + " on " + back + ")");
	}
	return [...bad];
})()`

func TestThePageIsWholeInABrowser(t *testing.T) {
	ctx := browser(t)
	r := sample()
	for _, show := range shows {
		t.Run(show.name, func(t *testing.T) {
			its := open(t, ctx, r, show.width, show.dark)
			picture(t, ctx, show.name)
			for _, s := range r.Sites {
				if !ask[bool](t, ctx, fmt.Sprintf(`[...document.querySelectorAll("#map figure svg")].filter(s => s.getBoundingClientRect().width > 300).every(s => [...s.querySelectorAll("text.name")].some(e => e.textContent.startsWith(%q)))`, s.Name)) {
					t.Errorf("not every map names %s", s.Name)
				}
			}
			if got, want := ask[int](t, ctx, `[...document.querySelectorAll("#map .phases svg")].length`), 6; got != want {
				t.Errorf("there are %d maps of phases, want %d", got, want)
			}
			times := ask[[]float64](t, ctx, `[...document.querySelectorAll(".timeline time")].map(e => parseFloat(e.textContent))`)
			if len(times) != len(r.Steps)+len(r.Events) || !slices.IsSorted(times) {
				t.Errorf("the timeline is not all steps and events in order: %v", times)
			}
			for _, s := range ask[[]string](t, ctx, overlaps) {
				t.Errorf("overlap: %s", s)
			}
			if wide := ask[int64](t, ctx, `document.scrollingElement.scrollWidth`); wide > show.width {
				t.Errorf("the page is %d wide on a screen of %d", wide, show.width)
			}
			high := ask[int64](t, ctx, `document.documentElement.scrollHeight`)
			tell(t, ctx, emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{Width: show.width, Height: high, DeviceScaleFactor: 1, Mobile: show.width < 600})
			for _, s := range ask[[]string](t, ctx, pale) {
				t.Errorf("pale: %s", s)
			}
			if s := its.all(); s != "" {
				t.Error(s)
			}
		})
	}
}

func TestThePageTellsOfTheSampleUnderThePointerAndSavesItsData(t *testing.T) {
	ctx := browser(t)
	its := open(t, ctx, sample(), 1280, false)
	at := ask[map[string]float64](t, ctx, `(() => { const svg = document.querySelector("svg.live.wide"); svg.scrollIntoView({block: "center"}); const b = svg.getBoundingClientRect(); return { x: b.left + b.width / 3, y: b.top + b.height / 2 }; })()`)
	if err := chromedp.Do(ctx, chromedp.MouseEvent(chromedp.MouseMoved, at["x"], at["y"])); err != nil {
		t.Fatal(err)
	}
	if tip := ask[string](t, ctx, `document.getElementById("tip").textContent`); !strings.Contains(tip, " ms, fra1") {
		t.Errorf("the tip says %q", tip)
	}
	saved := ask[string](t, ctx, `(() => { let kept; URL.createObjectURL = b => { kept = b; return "#"; }; document.getElementById("save").click(); return kept.type + " " + (kept.size > 10000); })()`)
	if saved != "application/json true" {
		t.Errorf("saved: %s", saved)
	}
	if s := its.all(); s != "" {
		t.Error(s)
	}
}

func TestThePageIsReadableWithoutScripts(t *testing.T) {
	ctx := browser(t)
	tell(t, ctx, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true})
	its := open(t, ctx, sample(), 1280, false)
	tree, err := chromedp.Run(ctx, chromedp.Text("main"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"Failed", "What each change did", "1.70 s", "www.demo.perigee.test leads nobody to icn1 any more", "287 ms"} {
		if !strings.Contains(tree, want) {
			t.Errorf("without scripts the page does not say %q", want)
		}
	}
	if strings.Contains(tree, "Save as JSON") {
		t.Error("without scripts there is a button that does nothing")
	}
	if s := its.all(); s != "" {
		t.Error(s)
	}
}

func TestThePagePrintsInBlackOnWhite(t *testing.T) {
	ctx := browser(t)
	open(t, ctx, sample(), 1280, true)
	pdf, err := chromedp.Run(ctx, chromedp.PrintToPDF())
	if err != nil {
		t.Fatal(err)
	}
	if folder := os.Getenv("PERIGEE_PAGES"); folder != "" {
		if err := os.WriteFile(filepath.Join(folder, "print.pdf"), pdf, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	tell(t, ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Media: "print", Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: "dark"}}})
	if got := ask[string](t, ctx, `getComputedStyle(document.body).backgroundColor`); got != "rgb(255, 255, 255)" {
		t.Errorf("in print the ground is %s", got)
	}
	tell(t, ctx, emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{Width: 700, Height: 1000, DeviceScaleFactor: 1})
	if wide := ask[bool](t, ctx, `getComputedStyle(document.querySelector("svg.wide")).display === "none"`); wide {
		t.Error("in print the drawings for telephones are shown")
	}
}

// The largest world has more sites than a telephone has room for: all of them are there, and most can be told apart.
func TestTheLargestWorldHasAllItsSitesOnTheMap(t *testing.T) {
	ctx := browser(t)
	r := large()
	for _, show := range []struct {
		name  string
		width int64
		most  int // labels of sites that cover each other
	}{{"large-wide", 1280, 0}, {"large-phone", 390, 6}} {
		its := open(t, ctx, r, show.width, false)
		picture(t, ctx, show.name)
		if got := ask[int](t, ctx, `[...document.querySelector("#map > figure").querySelectorAll("text.name")].filter(e => e.getBoundingClientRect().width > 0).length`); got != len(r.Sites) {
			t.Errorf("%s: %d sites have names on the map, want %d", show.name, got, len(r.Sites))
		}
		covered := ask[[]string](t, ctx, strings.Replace(strings.Replace(overlaps, `document.querySelectorAll("svg")`, `document.querySelectorAll("#map > figure > svg")`, 1), `querySelectorAll("text")`, `querySelectorAll("text.name")`, 1))
		if len(covered) > show.most {
			t.Errorf("%s: %d labels cover each other: %s", show.name, len(covered), strings.Join(covered, "; "))
		}
		if s := its.all(); s != "" {
			t.Error(s)
		}
	}
}

func TestHostileTextsDoNothingInABrowser(t *testing.T) {
	ctx := browser(t)
	its := open(t, ctx, hostile(`</script><script>alert(1)</script><img src=http://198.51.100.1/x onerror=alert(2)>"'>]]>`+"\u202e"), 390, false)
	if wide := ask[int64](t, ctx, `document.scrollingElement.scrollWidth`); wide > 390 {
		t.Errorf("the page is %d wide", wide)
	}
	if n := ask[int](t, ctx, `document.scripts.length * 100 + document.images.length`); n != 200 {
		t.Errorf("the page has other scripts or pictures than its own: %d", n)
	}
	if s := its.all(); s != "" {
		t.Error(s)
	}
}
