# `make help` lists the targets. Everything a newcomer needs is `make demo` and
# `make test`; both set up what they need. What is built for the tree lands in build/,
# what is built of other projects in ~/.cache/stillpoint (or STILLPOINT_TESTBED).

GO      ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
COMMIT  ?= $(shell git rev-parse HEAD 2>/dev/null)
IMAGE   ?= stillpoint:$(VERSION)
TESTBED := build/testbed
LINT    := build/golangci-lint
# Brings the cluster up for a command, and down again unless it was up before.
SESSION  = $(TESTBED) session --plugin build/stillpoint --
# Root on Linux runs the real cluster; anybody else runs what is left.
CLUSTER := $(shell [ "$$(uname -s)" = Linux ] && [ "$$(id -u)" = 0 ] && echo yes)

# All programs and tests are compiled with the same flags, so that Go's cache serves
# each of them with what another has compiled. The race detector needs objects of its
# own, and a C compiler.
export GOFLAGS     = -buildvcs=false -trimpath
export CGO_ENABLED = 0
RACE := $(if $(shell command -v gcc),yes)

# Tests that need neither root nor a cluster, and those that need both.
FAST := ./internal/... ./plugins/... ./tests/bench/... ./tests/demo/... ./tests/fake/... ./tests/faults/... \
        ./tests/house/... ./tests/recovery/... ./tests/soak/... ./tests/stage/...
SLOW := ./tests/cluster/... ./tests/e2e/...

.PHONY: build check demo test unit e2e recovery bench soak lint image cluster-up cluster-down clean help

build: build/stillpoint ## The plugin, build/stillpoint.

.PHONY: build/stillpoint build/testbed build/demo build/recovery build/bench build/soak
build/stillpoint:
	$(GO) build -ldflags "-s -w -X main.release=$(VERSION) -X main.commit=$(COMMIT)" -o $@ ./plugins
build/testbed:
	$(GO) build -o $@ ./tests/cluster/cmd/testbed
build/demo build/recovery build/bench:
	$(GO) build -o $@ ./tests/$(notdir $@)
build/soak:
	$(GO) build -o $@ ./tests/soak/cmd/soak

demo: build/stillpoint build/demo build/testbed ## The walk-through on a real cluster: quiesced backup, export, disaster, restore.
	$(SESSION) $(TESTBED) run -- build/demo

check: lint ## Lint and the fast tests: no root, no cluster.
	$(GO) test $(FAST)

test: lint unit e2e ## Lint, the fast tests with the race detector, and the end-to-end tests.

unit: ## The fast tests, with the race detector.
ifeq ($(RACE),yes)
	CGO_ENABLED=1 $(GO) test -race $(FAST)
else
	@echo "LEFT OUT: the race detector, which needs gcc."
	$(GO) test $(FAST)
endif

# The packages share one cluster, and some kill parts of it: one at a time. The
# walk-through is a test, too, and so is the loss of a cluster, which has clusters
# of its own: beside each other, after the others, some of which mind a busy machine.
e2e: build/stillpoint build/testbed build/demo build/recovery ## The end-to-end tests, as root on Linux.
ifeq ($(CLUSTER),yes)
	STILLPOINT_PLUGIN=$(CURDIR)/build/stillpoint $(SESSION) $(MAKE) --no-print-directory in-session

.PHONY: in-session walk-through loss-of-a-cluster
in-session:
	$(TESTBED) databases
	$(GO) test -count=1 -p 1 -timeout 75m -exec "$(CURDIR)/$(TESTBED) run --" $(SLOW)
	$(MAKE) --no-print-directory --jobs=2 --output-sync=target walk-through loss-of-a-cluster
walk-through:
	$(TESTBED) run -- build/demo
loss-of-a-cluster:
	build/recovery
else
	@echo "LEFT OUT: the end-to-end tests, which need root on Linux; the lint and the unit tests have run."
endif

recovery: build/stillpoint build/testbed build/recovery ## A cluster is lost, and what it ran is restored in another one: about 4 minutes.
	build/recovery

bench: build/stillpoint build/bench build/testbed ## Velero alone against Stillpoint, on the same cluster in one run: more than an hour.
	$(SESSION) $(TESTBED) run -- build/bench

# SOAK="--backups 5 --database redis" asks for less.
soak: build/stillpoint build/soak build/testbed ## Backups of databases under load, each restored and judged: an hour or so.
	$(SESSION) $(MAKE) --no-print-directory in-soak

.PHONY: in-soak
in-soak:
	$(TESTBED) databases
	$(TESTBED) run -- build/soak $(SOAK)

lint: $(LINT) ## The linter, by .golangci.yaml.
	$(LINT) run ./...

# Pinned in tests/tools/go.mod, and built again when that changes.
$(LINT): tests/tools/go.mod tests/tools/go.sum
	cd tests/tools && $(GO) build -o ../../$@ github.com/golangci/golangci-lint/v2/cmd/golangci-lint

image: ## A container image with the plugin; IMAGE names it.
	docker build --build-arg VERSION=$(VERSION) --build-arg COMMIT=$(COMMIT) -t $(IMAGE) .

cluster-up: build/stillpoint build/testbed ## Starts the test cluster, or brings it up to date.
	$(TESTBED) up --plugin build/stillpoint

cluster-down: build/testbed ## Stops the test cluster; its state stays.
	$(TESTBED) down

clean: ## Removes build/.
	rm -rf build

help: ## This list.
	@sed -n 's/^\([a-z0-9-]*\):[^#]*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand --tabs=14
