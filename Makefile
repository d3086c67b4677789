# Each target does its own set-up: nothing but Rust, a C++ compiler and Python 3 with venv is needed.

CONFIG ?= configs/quickstart.yaml
# On a machine without a GPU: one rank a core, two at most for the quickstart.
RANKS  ?= $(shell [ -e /dev/nvidiactl ] || echo --cpu 2)

.PHONY: train test bench setup lint

train: setup
	cargo build --release --locked -p launcher -p trainer
	target/release/launcher $(RANKS) $(CONFIG)

test: setup
	cargo build --release --locked --features mpi -p trainer
	cargo test --release --locked --workspace --features mpi

lint: setup
	cargo fmt --all --check
	cargo clippy --release --locked --workspace --all-targets --features mpi -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --release --locked --workspace --no-deps --features mpi

setup:
	@scripts/setup.sh
