//! The parts of a training job that need no tensors.
//!
//! Launcher and trainer share this crate: the configuration, networks as data, the files of data sets, the
//! assignment of samples to ranks, the run directory, and the exit codes. Nothing here links libtorch, so the
//! launcher starts in milliseconds.

pub mod config;
pub mod dataset;
pub mod exit_code;
pub mod files;
pub mod host;
pub mod metrics;
pub mod network;
mod number;
pub mod rng;
pub mod run_dir;
pub mod shard;

pub use config::Config;
pub use exit_code::ExitCode;
pub use number::{counted, thousands};
