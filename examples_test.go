package perigee

import (
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/dnsgeo"
	"github.com/perigee-net/perigee/edge/accelerator"
	"github.com/perigee-net/perigee/edge/cdn"
	"github.com/perigee-net/perigee/origin"
	"github.com/perigee-net/perigee/testbed/gate"
)

func TestTheExamplesAreValid(t *testing.T) {
	files, err := filepath.Glob("deployments/examples/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("found %d examples: %v", len(files), err)
	}
	for _, file := range files {
		if err := runs(file, read(t, file)); err != nil {
			t.Error(err)
		}
	}
}

// Every block that is fenced as yaml is a whole file: applied to an empty network it is taken, by all parts. What is no whole file is
// not fenced as yaml, and a resource that stands anywhere else would be an example that nobody tests.
func TestTheExamplesInTheDocsAreValid(t *testing.T) {
	examples := 0
	for _, page := range pages(t) {
		for _, b := range blocks(read(t, page)) {
			if b.language != "yaml" {
				if strings.Contains("\n"+b.text, "\nkind: ") {
					t.Errorf("%s:%d: an example that is not fenced as yaml", page, b.line)
				}
				continue
			}
			examples++
			// The lines before it are left in as blank ones, so that faults have the lines of the page.
			if err := runs(page, strings.Repeat("\n", b.line)+b.text); err != nil {
				t.Error(err)
			}
		}
	}
	if examples == 0 {
		t.Error("there are no examples in the docs")
	}
}

func TestEveryKindHasAPageWithAllItsFields(t *testing.T) {
	var schema schemaNode
	if err := json.Unmarshal(spec.Schema(), &schema); err != nil {
		t.Fatal(err)
	}
	index := read(t, "docs/resources.md")
	for _, kind := range spec.Kinds() {
		page := "resources/" + strings.ToLower(kind.Name) + ".md"
		if !strings.Contains(index, "]("+page+")") {
			t.Errorf("docs/resources.md does not link %s", page)
		}
		has, documented := map[string]bool{}, map[string]bool{}
		schema.Defs[kind.Name].fields(schema.Defs, has)
		delete(has, "kind") // the same for all: docs/resources.md
		for _, row := range rows(read(t, "docs/"+page), "field") {
			documented[row] = true
		}
		compare(t, "docs/"+page, "field", has, documented)
	}
}

func TestEveryCounterIsDocumented(t *testing.T) {
	has, documented := map[string]bool{}, map[string]bool{}
	for _, file := range sources(t) {
		if !strings.HasSuffix(file, "_test.go") && !strings.HasPrefix(filepath.ToSlash(file), "testbed/") {
			counters(t, file, has)
		}
	}
	statusClass := regexp.MustCompile(`[1-5]xx`)
	for _, row := range rows(read(t, "docs/metrics.md"), "name") {
		name, ok := strings.CutPrefix(row, "perigee_")
		if !ok {
			t.Errorf("docs/metrics.md: %s is not perigee's", row)
		}
		documented[statusClass.ReplaceAllString(name, "%dxx")] = true
	}
	compare(t, "docs/metrics.md", "counter", has, documented)
}

func TestLinksBetweenPagesLeadSomewhere(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)#:]+)[^):]*\)`)
	for _, page := range pages(t) {
		for _, m := range link.FindAllStringSubmatch(read(t, page), -1) {
			if _, err := os.Stat(filepath.Join(filepath.Dir(page), m[1])); err != nil {
				t.Errorf("%s: %v", page, err)
			}
		}
	}
}

// runs says why a network could not be run, if so: because of what it says, or because a part does not take it.
func runs(file, data string) error {
	docs, err := spec.Split(file, []byte(data))
	if err != nil {
		return err
	}
	s, err := spec.Build(1, docs, spec.Options{})
	if err != nil {
		return err
	}
	site := cdn.New(cdn.Config{})
	defer site.Close()
	for _, part := range []interface{ Apply(*spec.Spec) error }{
		origin.New(origin.Config{}), site, accelerator.New(accelerator.Config{}), dnsgeo.New(dnsgeo.Config{}),
	} {
		if err := part.Apply(s); err != nil {
			return err
		}
	}
	return nil
}

// compare tells what is only in the code, and what is only on the page.
func compare(t *testing.T, page, what string, has, documented map[string]bool) {
	t.Helper()
	for _, name := range slices.Sorted(maps.Keys(has)) {
		if !documented[name] {
			t.Errorf("%s lacks the %s %s", page, what, name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(documented)) {
		if !has[name] {
			t.Errorf("%s has a %s %s, which there is not", page, what, name)
		}
	}
}

// pages are the files with text for users.
func pages(t *testing.T) []string {
	t.Helper()
	found := []string{"README.md"}
	err := filepath.WalkDir("docs", func(file string, _ fs.DirEntry, err error) error {
		if strings.HasSuffix(file, ".md") {
			found = append(found, file)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func read(t *testing.T, file string) string {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// block is a part of a page that is fenced or indented as code; what is indented has no language.
type block struct {
	language string
	line     int // of the fence, or the line before it: from 1
	text     string
}

func blocks(page string) []block {
	var all []block
	fenced, indented := false, false
	for i, line := range strings.Split(page, "\n") {
		language, fence := strings.CutPrefix(line, "```")
		code, indent := strings.CutPrefix(line, "    ")
		switch {
		case fence && !fenced:
			all = append(all, block{language: language, line: i + 1})
			fenced = true
		case fence:
			fenced = false
		case fenced:
			all[len(all)-1].text += line + "\n"
		case indent && indented:
			all[len(all)-1].text += code + "\n"
		case indent:
			all = append(all, block{line: i, text: code + "\n"})
		}
		indented = indent && !fenced
	}
	return all
}

// rows are the first cells of the tables of a page whose header begins with that cell. They are code.
func rows(page, header string) []string {
	var cells []string
	inside := false
	for line := range strings.Lines(page) {
		cell, isRow := strings.CutPrefix(line, "| ")
		cell, _, _ = strings.Cut(cell, " |")
		switch {
		case isRow && cell == header:
			inside = true
		case isRow && inside:
			cells = append(cells, strings.Trim(cell, "`"))
		case !strings.HasPrefix(line, "|"):
			inside = false
		}
	}
	return cells
}

// schemaNode is as much of a JSON Schema as leads to the fields.
type schemaNode struct {
	Ref        string                `json:"$ref"`
	Defs       map[string]schemaNode `json:"$defs"`
	Properties map[string]schemaNode
	Items      *schemaNode
}

// fields adds the names of all fields of a structure and of those within it.
func (n schemaNode) fields(defs map[string]schemaNode, names map[string]bool) {
	if name, ok := strings.CutPrefix(n.Ref, "#/$defs/"); ok {
		defs[name].fields(defs, names)
	}
	if n.Items != nil {
		n.Items.fields(defs, names)
	}
	for name, property := range n.Properties {
		names[name] = true
		property.fields(defs, names)
	}
}

// counters adds the names that a file's functions of that name have: all the text in them.
func counters(t *testing.T, file string, names map[string]bool) {
	t.Helper()
	parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	name := regexp.MustCompile(`^[a-z]+_[a-z0-9_%]+$`)
	for _, d := range parsed.Decls {
		f, ok := d.(*ast.FuncDecl)
		if !ok || !strings.EqualFold(f.Name.Name, "counters") {
			continue
		}
		ast.Inspect(f, func(n ast.Node) bool {
			if literal, ok := n.(*ast.BasicLit); ok && literal.Kind == token.STRING {
				if text, err := strconv.Unquote(literal.Value); err == nil && name.MatchString(text) {
					names[text] = true
				}
			}
			return true
		})
	}
}

// The configurations of routers are read by the program that they are for.
func TestTheRouterExamplesAreRead(t *testing.T) {
	gate.Wanted(t)
	bird, err := exec.LookPath("bird")
	if err != nil {
		bird = "/usr/sbin/bird"
	}
	if _, err := os.Stat(bird); err != nil {
		t.Fatal("BIRD is missing: apt-get install bird2")
	}
	if out, err := exec.Command(bird, "-p", "-c", "deployments/routers/bird.conf").CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}
