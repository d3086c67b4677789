# Each target does its own set-up: nothing but Rust, a C++ compiler and Python 3 with venv is needed.

CONFIG ?= configs/quickstart.yaml
# On a machine without a GPU: two ranks on the CPU.
RANKS  ?= $(shell [ -e /dev/nvidiactl ] || echo --cpu 2)

.PHONY: train test bench setup lint msrv deny

train: setup
	cargo build --release --locked -p launcher -p trainer
	target/release/launcher $(RANKS) $(CONFIG)

# Tests of NCCL find the wheels' libraries, where a machine with a GPU has them.
test: export LD_LIBRARY_PATH := $(subst $() ,:,$(strip $(LD_LIBRARY_PATH) $(wildcard $(CURDIR)/.deps/venv/lib/python3*/site-packages/nvidia/*/lib)))
test: setup
	cargo build --release --locked --features mpi -p trainer
	cargo test --release --locked --workspace --features mpi

# BENCH="--gpus 1,2,4 --repeats 3" and the like; DATA: folder with CIFAR-10's .bin files.
PYTHON ?= python3
BENCH  ?= $(shell [ -e /dev/nvidiactl ] && echo --gpus 1,2,4,8 || echo --cpu 1,2)
bench: setup
	cargo build --release --locked -p launcher -p trainer -p benches
	target/release/scaling $(BENCH) --configs configs/resnet18.yaml --batch-per-rank 64 \
	    --global-batch 128 --python $(PYTHON) $(if $(DATA),--data $(DATA))

lint: setup
	cargo fmt --all --check
	cargo clippy --release --locked --workspace --all-targets --features mpi -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --release --locked --workspace --no-deps --features mpi

# Whether everything compiles with the least supported Rust, which rustup installs.
MSRV := $(shell sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
msrv: setup
	rustup toolchain install --profile minimal $(MSRV)
	cargo +$(MSRV) check --locked --workspace --all-targets --features mpi --target-dir target/msrv

# Licences and sources of dependencies, and what is known against them; the last needs the network:
# make deny CHECKS="bans licenses sources" does without.
CHECKS ?= advisories bans licenses sources
deny: setup .deps/bin/cargo-deny
	.deps/bin/cargo-deny --all-features check $(CHECKS)

.deps/bin/cargo-deny:
	cargo install cargo-deny --locked --version 0.20.2 --root .deps

setup:
	@scripts/setup.sh
