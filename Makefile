# make run    builds bin/perigee and starts three regions on this machine
# make test   checks the code and runs every test
# make bench  runs the benchmarks of the hot paths
# make fuzz   runs every fuzz target for FUZZTIME each (30s)

GO       ?= go
FUZZTIME ?= 30s
COUNT    ?= 6

# The race detector needs a C compiler; without one the tests run without it, and say so.
RACE := $(shell command -v $$($(GO) env CC) >/dev/null 2>&1 && echo -race)
export GOTOOLCHAIN ?= local

.PHONY: all build run test check bench fuzz clean

all: build

build:
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/perigee ./cmd/perigee

run: build
	bin/perigee dev

test: check
	@test -n "$(RACE)" || echo "no C compiler: testing without the race detector"
	$(GO) test $(RACE) -timeout 10m ./...

check:
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { gofmt -d $$(git ls-files '*.go'); exit 1; }
	$(GO) vet ./...
	$(GO) tool -modfile=tools/go.mod staticcheck ./...

bench:
	$(GO) test -run '^$$' -bench . -benchmem -count $(COUNT) ./... | tee bench.txt
	$(GO) tool -modfile=tools/go.mod benchstat bench.txt

fuzz:
	@for pkg in $$($(GO) list ./...); do \
	  for target in $$($(GO) test -list '^Fuzz' $$pkg | grep ^Fuzz); do \
	    $(GO) test -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) $$pkg || exit 1; \
	  done; \
	done

clean:
	rm -rf bin bench.txt
