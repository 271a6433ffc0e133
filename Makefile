# make run    builds bin/perigee and starts three regions on this machine
# make test   checks the code and runs every test
# make cross  builds everything for SYSTEMS (linux/386 linux/arm64 darwin/arm64)
# make verify does that, and tries for minutes what make test tries for seconds: agreement, that purges are certain and flows whole, over SEEDS seeds in virtual
#             time; agreement over real processes for VERIFYTIME (2m) of kill -9 and SIGSTOP; an upgrade under load; that what is explained is
#             what is served, over ANSWERS random DNS queries
# make bench  measures this program beside others that are installed (ROUNDS samples of SAMPLE each, to bench.json and bench.html), the
#             benchmarks of the hot paths COUNT times each, and those of whole clusters once. make peers builds two that Debian has not
# make lab    runs what needs root and a Linux kernel: namespaces, links, BIRD, unbound, a browser, user-mode-linux
# make scale  lets fleets of SIZES nodes (10,100,1000) live in virtual time, and prints as a table what they take, and how that grows
# make conformance  has this program and other caches that are installed tried by the public tests of HTTP caches, which npm brings, and prints how many
#             each passes; make conformance ARGS='--failed perigee' says which ours does not
# make fuzz   runs every fuzz target for FUZZTIME each (30s)

GO       ?= go
FUZZTIME ?= 30s
COUNT    ?= 6
SEEDS    ?= 1000
ANSWERS  ?= 1000000
VERIFYTIME ?= 2m
SIZES    ?= 10,100,1000
SYSTEMS  ?= linux/386 linux/arm64 darwin/arm64
ROUNDS   ?= 7
SAMPLE   ?= 3s

# They begin first, or one processor waits for the other in the end.
LONGEST := ./testbed ./cluster/backbone ./testbed/procs ./edge/cdn ./cluster/store ./dnsgeo

# The race detector needs a C compiler; without one the tests run without it, and say so.
RACE := $(shell command -v $$($(GO) env CC) >/dev/null 2>&1 && echo -race)
export GOTOOLCHAIN ?= local

.PHONY: all build run test check cross lab verify bench peers conformance scale fuzz clean

all: build

build:
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/perigee ./cmd/perigee

run: build
	bin/perigee dev

test: check
	@test -n "$(RACE)" || echo "no C compiler: testing without the race detector"
	$(GO) test $(RACE) -timeout 30m $(LONGEST) ./...

# As what is built: without cgo and with -trimpath, so that what is compiled for one is there for the other.
check: export CGO_ENABLED = 0
check: export GOFLAGS := $(shell $(GO) env GOFLAGS) -trimpath
check:
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { gofmt -d $$(git ls-files '*.go'); exit 1; }
	$(GO) vet ./...
	$(GO) tool -modfile=tools/go.mod staticcheck ./...

# They are built, not tested: that they have room in an int, and nothing that one of them lacks. Nor do tests, where there is no Linux.
cross:
	for system in $(SYSTEMS); do GOOS=$${system%/*} GOARCH=$${system#*/} CGO_ENABLED=0 $(GO) build ./... || exit 1; done
	GOOS=darwin CGO_ENABLED=0 $(GO) vet ./...

# One package after the other, since they measure times; scenarios wait most of the time, so some run at once. The race detector's memory does not
# fit into user-mode-linux, so what runs there is run again without it.
lab: export PERIGEE_LAB = required
lab:
	$(GO) test $(RACE) -count 1 -p 1 -timeout 30m ./cluster/socket ./edge/anycast ./edge/anycast/stray ./origin/transparent ./testbed/netns ./testbed/pump ./testbed/page ./testbed/bench ./testbed/bed
	$(GO) test $(RACE) -count 1 -p 1 -parallel 3 -timeout 40m -run 'Router|Testbed' . ./cmd/perigee
	CGO_ENABLED=0 $(GO) test -trimpath -count 1 -p 1 -run 'AnotherKernel' ./testbed/netns
	CGO_ENABLED=0 $(GO) test -trimpath -count 1 -p 1 -timeout 20m ./testbed/uml

# The processes first: a thousand seeds of agreement take a quarter of an hour on two cores, of purges half an hour.
verify: cross
	$(GO) test -count 1 -v -timeout 30m -run 'NoAcknowledgedChange|ARollingUpgrade' ./testbed/procs -linear.for $(VERIFYTIME) -upgrades
	PERIGEE_ANSWERS=$(ANSWERS) $(GO) test -count 1 -v -timeout 2h -run 'WhatIsExplained' ./dnsgeo
	PERIGEE_SEEDS=$(SEEDS) $(GO) test -count 1 -v -timeout 3h -run 'AppliesAreLinearizable|AfterTheReceipt|AFlowArrivesWhole' ./testbed
	PERIGEE_SEEDS=$(SEEDS) $(GO) test -count 1 -v -timeout 30m -run 'OlderThanThePurgesThatItHasMade' ./edge/cdn

bench: build
	$(GO) test -run '^$$' -bench . -skip '^BenchmarkCluster' -benchmem -count $(COUNT) $$($(GO) list ./... | grep -v '/testbed/pump$$') | tee bench.txt
	$(GO) tool -modfile=tools/go.mod benchstat bench.txt
	bin/perigee bench --micro bench.txt --json bench.json --html bench.html --rounds $(ROUNDS) --duration $(SAMPLE)
	$(GO) test -run '^$$' -bench '^BenchmarkCluster' -benchtime 1x -timeout 1h ./testbed ./testbed/procs
	$(GO) test -run '^$$' -bench . -benchtime 1x -timeout 30m ./testbed/pump

# Programs to be measured beside that are Go modules; Debian has the others.
peers:
	cd tools/peers/caddy && CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w' -o ../../../bin/peers/caddy github.com/caddyserver/caddy/v2/cmd/caddy
	cd tools/peers/coredns && CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w' -o ../../../bin/peers/coredns github.com/coredns/coredns

# The versions and their sums are in package-lock.json; no script of a package is run.
conformance: build
	mkdir -p bin/conformance
	cp tools/conformance/package.json tools/conformance/package-lock.json bin/conformance
	cd bin/conformance && npm ci --ignore-scripts --no-audit --no-fund
	node --no-warnings tools/conformance/run.mjs bin/conformance $(ARGS)

# A binary of its own, so that nothing but the table is written to stdout. 1,000 nodes in one process make much garbage: they have some 10 GB.
scale:
	$(GO) test -c -o bin/scale.test ./testbed/scale
	GOGC=300 GOMEMLIMIT=10GiB nice bin/scale.test -test.run '^TestAFleetGrows$$' -test.timeout 5h -sizes $(SIZES)

fuzz:
	@for pkg in $$($(GO) list ./...); do \
	  for target in $$($(GO) test -list '^Fuzz' $$pkg | grep ^Fuzz); do \
	    $(GO) test -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) $$pkg || exit 1; \
	  done; \
	done

clean:
	rm -rf bin bench.txt bench.json bench.html
