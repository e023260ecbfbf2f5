# Commands of the project; `make help` lists them. Everything that a command needs it sets up itself.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

target_dir := $(abspath $(or $(CARGO_TARGET_DIR),target))
static := -C target-feature=+crt-static
# What set-up builds is found like what packages install.
export PATH := $(CURDIR)/.cache/bin:$(PATH)
# Binaries under test, for the harness.
export BERTH_BIN_DIR := $(target_dir)/release
# One after another: each end-to-end case has its node to itself.
e2e := cargo test -p e2e
one_by_one := -- --test-threads=1

.PHONY: help
help: ## list these commands
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: setup
setup: ## install what tests, demo and benchmarks run (Debian packages, crictl, critest, kubelet, runc, youki, cargo-deny)
	@e2e/scripts/setup.sh

.PHONY: packages
packages:
	@e2e/scripts/setup.sh packages

.PHONY: build
build: ## release binaries in target/release; monitor and plugins static
	cargo build --release -p cri-server --bin cri-server
	@# The flag reaches the program alone, so libraries are built once for all three.
	cargo rustc --release -p cri-server --bin cri-monitor -- $(static)
	cargo rustc --release -p cni-bridge --bin cni-bridge -- $(static)

.PHONY: demo
demo: packages build ## two pods on a bridge, shown and removed again
	cargo build --release -q -p e2e --bins
	$(target_dir)/release/demo

.PHONY: test
test: export E2E_REQUIRE := 1
test: setup build lint test-unit test-e2e ## every test: unit, kernel, end to end, conformance

.PHONY: test-unit
test-unit: setup ## unit, property, golden and kernel tests, and the style of the source
	cargo test --workspace --exclude e2e
	cargo test -p e2e --lib --test tidy

.PHONY: test-e2e
test-e2e: setup build ## the real binaries with real peers; leak diff after every case
	$(e2e) --test harness --test image_cli --test crash --test kubelet $(one_by_one)
	for handler in crun runc youki; do \
	  E2E_HANDLER=$$handler $(e2e) --test runtime --test namespaces --test userns --test bad_input --test crictl \
	    --test restart --test streaming --test resources --test events --test kept --test volumes --test mounts $(one_by_one); \
	done
	$(e2e) --test critest $(one_by_one) --nocapture

.PHONY: test-guest
test-guest: setup build ## node tests and critest in a virtual machine with cgroup v2 and AppArmor
	@e2e/scripts/setup.sh guest
	cargo test -q --no-run -p e2e
	$(target_dir)/debug/e2e-guest

.PHONY: critest
critest: setup build ## the CRI conformance suite with every runtime handler
	$(e2e) --bins --test critest $(one_by_one) --nocapture

.PHONY: bench
bench: packages build ## beside containerd in the same run: wall, CPU, memory
	cargo build --release -q -p e2e --bins
	$(target_dir)/release/bench

.PHONY: bench-quick
bench-quick: packages build ## the short form of bench
	cargo build --release -q -p e2e --bins
	$(target_dir)/release/bench --quick

.PHONY: lint
lint: ## formatting, clippy, licences
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	@if cargo deny --version >/dev/null 2>&1; then cargo deny --locked --log-level error check licenses bans sources; \
	else echo "lint: cargo-deny is not installed, licences are not checked"; fi
