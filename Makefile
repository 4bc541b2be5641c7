# The only entry points; `make help` lists them. On a bare Debian, as root, nothing needs to be installed before.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup demo test bench faults chaos rollouts plugin processes process-test lint generate images previous unit cluster-test cluster-up cluster-down

# What is costly to make and not part of the sources: builds, images, the cluster.
export DURABLE_CACHE ?= $(HOME)/.cache/durable-server
export CARGO_TARGET_DIR ?= $(DURABLE_CACHE)/target
# One target and one profile for images and tests alike: what is tested is what ships.
export CARGO_BUILD_TARGET := x86_64-unknown-linux-musl
export CC_x86_64_unknown_linux_musl := musl-gcc
export CARGO_TERM_COLOR ?= never
# Errors are sentences; a stripped binary has no more to say.
export RUST_LIB_BACKTRACE ?= 0
# The S3 server that the store's tests start is the one that setup has built.
export WEED ?= $(DURABLE_CACHE)/cluster/bin/weed

VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml)
BUILT := $(CARGO_TARGET_DIR)/$(CARGO_BUILD_TARGET)/release
IMAGE = e2e/cluster/image $(DURABLE_CACHE)/images/$(1).tar durable-server/$(1):$(VERSION)
CERTIFICATES := /etc/ssl/certs/ca-certificates.crt
CARGO_DENY := $(DURABLE_CACHE)/tools/bin/cargo-deny
PART := @e2e/part

# Each command builds for the whole workspace and then runs a part: with -p, dependencies have other features and are built again.
CARGO_TEST := cargo test --release --workspace
E2E = @CARGO_MANIFEST_DIR=$(CURDIR)/e2e $(BUILT)/e2e
NAMES = $(patsubst %,--test %,$(basename $(notdir $(patsubst %/main.rs,%,$(1)))))
UNIT_TESTS := $(call NAMES,$(filter-out e2e/%,$(wildcard */tests/*.rs */tests/*/main.rs)))
PROCESS_TEST := e2e/tests/processes.rs
CLUSTER_TESTS := $(call NAMES,$(filter-out $(PROCESS_TEST),$(wildcard e2e/tests/*.rs)))
# Only there processes have fail points; the next build of what ships puts programs without them in place.
FAILPOINTS := --features failpoint/on

help: ## list what can be made
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

demo: images ## a rolling restart of 300 rooms under load: direct, by the store, and without handoff
	$(E2E) demo

test: ## everything: lint, unit, property and model tests and the simulation, then the real cluster
	@begun=$$(date +%s); $(MAKE) --no-print-directory lint unit cluster-test; echo "== all: $$(($$(date +%s) - begun)) s"

bench: images ## rolling restarts until the gap's percentiles mean something
	$(E2E) bench

faults: images ## all that can go wrong: a table of what is moved, stopped and seen, and that nothing acknowledged is lost
	$(E2E) faults

chaos: images ## what breaks without a word (nodes, networks, kills, outages): how soon servers are back, and that none is served twice
	$(E2E) chaos

rollouts: images ## every kind of rollout: rolling, ahead, blue-green, nodes and pods that are emptied; sockets and streams through ten of them
	$(E2E) rollouts

plugin: setup ## kubectl durable
	cargo build --release --workspace --bins
	@echo "$(BUILT)/kubectl-durable: with $(BUILT) in your PATH, kubectl durable runs it"

processes: export PROCESSES := all
processes: process-test ## operators, agents and hosts as processes on a real API server and a real S3 server, each killed and paused at each step

process-test: setup ## those of the above that tell most
	$(PART) "build of processes with fail points" cargo build --release -q --workspace --bins $(FAILPOINTS)
	$(PART) "real processes" $(CARGO_TEST) $(FAILPOINTS) $(call NAMES,$(PROCESS_TEST)) -- --nocapture

lint: setup $(CARGO_DENY) ## format, clippy, generated files, licences, advisories, chart
	$(PART) format cargo fmt --all --check
	$(PART) clippy cargo clippy --release --workspace --all-targets -- -D warnings
	$(PART) "clippy, fail points" cargo clippy --release -p failpoint --features on -- -D warnings
	$(PART) "generated files" e2e/stale
	$(PART) "licences, bans, sources" $(CARGO_DENY) --log-level warn check bans licenses sources
	$(PART) advisories e2e/advisories $(CARGO_DENY)
	$(PART) chart e2e/chart

generate: setup ## write the files that are generated: the resource definitions
	cargo build --release -q --workspace --bins
	$(BUILT)/crdgen

images: setup ## build the images, without a container engine
	cargo build --release --workspace --bins
	@$(call IMAGE,operator) /durable-operator=$(BUILT)/durable-operator
	@$(call IMAGE,agent) /durable-agent=$(BUILT)/durable-agent $(CERTIFICATES)=$(CERTIFICATES)
	@$(call IMAGE,rooms) /rooms=$(BUILT)/rooms
	@$(call IMAGE,bad-host) /bad-host=$(BUILT)/bad_host /rooms=$(BUILT)/rooms
	@$(call IMAGE,seaweedfs) /weed=$(DURABLE_CACHE)/cluster/bin/weed

previous: setup
	$(PART) "build of the previous version" e2e/previous

unit: setup ## unit, property and model tests
	$(PART) "build of the tests" $(CARGO_TEST) --no-run -q
	$(PART) "unit, property and model tests" $(CARGO_TEST) -q --lib --bins $(UNIT_TESTS)

cluster-test: images previous ## tests on a real cluster, or on that of E2E_KUBECONFIG
	$(PART) "real cluster" $(CARGO_TEST) $(CLUSTER_TESTS) -- --test-threads=1 --nocapture

cluster-up: images ## bring the cluster up with the product installed
	$(E2E) up

cluster-down: ## stop the cluster and delete its data
	e2e/cluster/cluster down

setup: ## install what a bare Debian lacks
	@e2e/setup

$(CARGO_DENY): | setup
	cargo install -q --locked cargo-deny --version 0.20.2 --root $(DURABLE_CACHE)/tools
