# Commands of the project; `make help` lists them. Everything that a command needs it sets up itself.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
# Set-up comes before what needs it, and tests have the machine to themselves.
.NOTPARALLEL:

target_dir := $(abspath $(or $(CARGO_TARGET_DIR),target))
static := -C target-feature=+crt-static
# The C library of plugins, whose life is mostly their start: that of musl takes half as long as that of glibc.
musl = $(patsubst %-gnu,%-musl,$(shell rustc -vV | sed -n 's/^host: //p'))
plugins := -p cni-bridge --bin cni-bridge
# What set-up builds is found like what packages install.
export PATH := $(CURDIR)/.cache/bin:$(PATH)
# Binaries under test, for the harness.
export BERTH_BIN_DIR := $(target_dir)/release
# One after another: each end-to-end case has its node to itself.
e2e := cargo test -p e2e
one_by_one := -- --test-threads=1

.PHONY: help
help: ## list these commands
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: setup
setup: ## install what tests, demo and benchmarks run (Debian packages, crictl, critest, kubelet, runc, youki, cnitool and more)
	@e2e/scripts/setup.sh

.PHONY: packages
packages:
	@e2e/scripts/setup.sh packages

.PHONY: build
build: ## release binaries in target/release; monitor and plugins static
	cargo build --release -p cri-server --bin cri-server
	@# The flag reaches the program alone, so libraries are built once for all three.
	cargo rustc --release -p cri-server --bin cri-monitor -- $(static)
	@if [ -d "$$(rustc --print target-libdir --target $(musl))" ] || timeout 180 rustup target add $(musl); then \
	  set -x; cargo rustc --release $(plugins) --target $(musl) -- $(static) -C relocation-model=static; \
	  install $(target_dir)/$(musl)/release/cni-bridge $(target_dir)/release/; \
	else \
	  echo "build: the toolchain has no $(musl), plugins get the host's C library"; \
	  set -x; cargo rustc --release $(plugins) -- $(static) -C relocation-model=static; \
	fi

.PHONY: demo
demo: packages build ## two pods on a bridge, shown and removed again
	cargo build --release -q -p e2e --bins
	$(target_dir)/release/demo

.PHONY: test
test: export E2E_REQUIRE := 1
test: setup build lint test-unit test-e2e ## unit, kernel, end to end, CRI conformance; not test-guest and cni-conformance

.PHONY: test-unit
test-unit: setup fuzz ## unit, property, golden and kernel tests, some seconds of fuzzing, and the style of the source
	cargo test --workspace --exclude e2e
	cargo test -p e2e --lib --test tidy

# Each starts from nothing, so that a run leaves nothing in the tree but the input that broke it.
FUZZ_SECONDS ?= 5
fuzz_dir := cri-server/fuzz
.PHONY: fuzz
fuzz: packages ## FUZZ_SECONDS (5) of libFuzzer on each codec of what stream clients send
	cd $(fuzz_dir) && cargo build --quiet --locked --target-dir $(target_dir)/fuzz
	@mkdir -p $(fuzz_dir)/artifacts
	@for codec in spdy headers websocket; do \
	  log=$(target_dir)/fuzz/$$codec.log; \
	  $(target_dir)/fuzz/*/debug/$$codec -max_total_time=$(FUZZ_SECONDS) -max_len=4096 -print_final_stats=1 \
	    -artifact_prefix=$(fuzz_dir)/artifacts/$$codec- >"$$log" 2>&1 || { tail -n 40 "$$log"; exit 1; }; \
	  echo "fuzz: $$codec: $$(sed -n 's/^stat::number_of_executed_units: *//p' "$$log") inputs, none broke it"; \
	done

.PHONY: test-e2e
test-e2e: setup build ## the real binaries with real peers; leak diff after every case
	$(e2e) --test harness --test image_cli --test crash --test silence --test interruptions --test kubelet \
	  --test kubelet_streams --test streaming_tls $(one_by_one)
	$(e2e) --test cni_mixed --test cni_random --test cni_gc $(one_by_one)
	for handler in crun runc youki; do \
	  E2E_HANDLER=$$handler $(e2e) --test runtime --test namespaces --test userns --test bad_input --test crictl \
	    --test restart --test streaming --test resources --test hugepages --test events --test kept --test volumes \
	    --test mounts --test devices --test seccomp --test selinux $(one_by_one); \
	done
	$(e2e) --test critest $(one_by_one) --nocapture

.PHONY: test-guest
test-guest: setup build ## node tests and critest in a virtual machine with cgroup v2 and AppArmor, or SELinux
	@e2e/scripts/setup.sh guest
	cargo test -q --no-run -p e2e
	$(target_dir)/debug/e2e-guest

.PHONY: critest
critest: setup build ## the CRI conformance suite with every runtime handler
	$(e2e) --bins --test critest $(one_by_one) --nocapture

.PHONY: cni-conformance
cni-conformance: export E2E_REQUIRE := 1
cni-conformance: setup build ## outside judges of the plugins: cnitool, podman, two CRI runtimes, others' tests; 10 000 random operations
	@e2e/scripts/setup.sh cni
	$(e2e) --bins --test cni_conformance $(one_by_one) --nocapture
	E2E_CNI_OPS=$${E2E_CNI_OPS:-10000} $(e2e) --test cni_random $(one_by_one) --nocapture

.PHONY: bench
bench: packages build ## beside containerd in the same run: wall, CPU, memory
	@e2e/scripts/setup.sh plugins
	cargo build --release -q -p e2e --bins
	$(target_dir)/release/bench

.PHONY: bench-quick
bench-quick: packages build ## the short form of bench
	@e2e/scripts/setup.sh plugins
	cargo build --release -q -p e2e --bins
	$(target_dir)/release/bench --quick

.PHONY: lint
lint: ## formatting, clippy, licences
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	@if cargo deny --version >/dev/null 2>&1; then cargo deny --locked --log-level error check licenses bans sources; \
	else echo "lint: cargo-deny is not installed, licences are not checked"; fi
