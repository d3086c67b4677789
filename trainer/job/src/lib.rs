//! What a training job is, decided without a tensor.
//!
//! The launcher and the trainer share it: the configuration, networks as data, the data set's
//! files, which rank takes which samples, the run directory, and the exit codes. Nothing here links
//! libtorch, so the launcher starts in milliseconds.

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
pub use number::thousands;
