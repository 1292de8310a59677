# Everything a newcomer needs is `make demo` and `make test`; both set up what
# they need. What is built for the tree lands in build/, what is built of other
# projects in ~/.cache/stillpoint (or STILLPOINT_TESTBED).

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

export GOFLAGS = -buildvcs=false

.PHONY: help build demo test unit e2e recovery bench soak lint image cluster-up cluster-down clean

## The plugin, build/stillpoint.
build: build/stillpoint

## Show this list.
help:
	@awk '/^## / {text = text "\n                  " substr($$0, 4)} \
		/^[a-z0-9-]+:/ && text {sub(/^\n */, "", text); sub(/:.*/, ""); printf "  %-15s %s\n", $$0, text} \
		!/^#/ {text = ""}' $(MAKEFILE_LIST)

.PHONY: build/stillpoint build/testbed build/demo build/recovery build/bench build/soak
build/stillpoint:
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags "-s -w -X main.release=$(VERSION) -X main.commit=$(COMMIT)" -o $@ ./plugins
build/testbed:
	CGO_ENABLED=0 $(GO) build -o $@ ./tests/cluster/cmd/testbed
build/demo build/recovery build/bench:
	CGO_ENABLED=0 $(GO) build -o $@ ./tests/$(notdir $@)
build/soak:
	CGO_ENABLED=0 $(GO) build -o $@ ./tests/soak/cmd/soak

## The walk-through on a real cluster: quiesced backup, export, disaster, restore.
demo: build/stillpoint build/demo build/testbed
	$(SESSION) $(TESTBED) run -- build/demo

## Lint, unit tests and end-to-end tests.
test: lint unit e2e

# The race detector needs a C compiler.
RACE := $(if $(shell command -v gcc),-race)
## Unit tests and tests/faults.
unit:
	@$(if $(RACE),,echo "LEFT OUT: the race detector, which needs gcc.")
	$(GO) test $(RACE) ./internal/... ./plugins/... ./tests/faults/... ./tests/house/...

## End-to-end tests on the real cluster; needs root on Linux.
# The packages share one cluster, and some kill parts of it: one at a time. The
# walk-through is a test, too, and so is the loss of a cluster, which has clusters
# of its own: after the others, some of which mind a busy machine.
e2e: build/stillpoint build/testbed build/demo build/recovery
ifeq ($(CLUSTER),yes)
	STILLPOINT_PLUGIN=$(CURDIR)/build/stillpoint $(SESSION) $(MAKE) --no-print-directory in-session
	build/recovery

.PHONY: in-session
in-session:
	$(TESTBED) databases
	$(GO) test -count=1 -p 1 -timeout 75m -exec "$(CURDIR)/$(TESTBED) run --" $$($(GO) list ./tests/... | grep -v -e /tests/faults -e /tests/house)
	$(TESTBED) run -- build/demo
else
	@echo "LEFT OUT: the end-to-end tests, which need root on Linux; the lint and the unit tests have run."
endif

## A cluster is lost, and what it ran is restored in another one: about 4 minutes.
recovery: build/stillpoint build/testbed build/recovery
	build/recovery

## Velero alone against Stillpoint, on the same cluster in one run: more than an hour.
bench: build/stillpoint build/bench build/testbed
	$(SESSION) $(TESTBED) run -- build/bench

## Backups of databases under load, each restored and judged: an hour or so.
## SOAK="--backups 5 --database redis" asks for less.
soak: build/stillpoint build/soak build/testbed
	$(SESSION) $(MAKE) --no-print-directory in-soak

.PHONY: in-soak
in-soak:
	$(TESTBED) databases
	$(TESTBED) run -- build/soak $(SOAK)

## Lint with the pinned golangci-lint.
lint: $(LINT)
	$(LINT) run ./...

# Pinned in tests/tools/go.mod, and built again when that changes.
$(LINT): tests/tools/go.mod tests/tools/go.sum
	cd tests/tools && CGO_ENABLED=0 $(GO) build -o ../../$@ github.com/golangci/golangci-lint/v2/cmd/golangci-lint

## The plugin's image; IMAGE names it.
image:
	docker build --build-arg VERSION=$(VERSION) --build-arg COMMIT=$(COMMIT) -t $(IMAGE) .

## Start the test bed's cluster, or use the one that runs.
cluster-up: build/stillpoint build/testbed
	$(TESTBED) up --plugin build/stillpoint

## Stop that cluster; its state stays.
cluster-down: build/testbed
	$(TESTBED) down

## Remove build/.
clean:
	rm -rf build
