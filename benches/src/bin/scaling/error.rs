//! What can go wrong.

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;

use job::config::ConfigError;
use job::dataset::DataError;

/// Why something cannot be measured.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// Our programs are not built.
    #[error("{} is missing; cargo build --release -p launcher -p trainer makes it", .0.display())]
    NotBuilt(PathBuf),
    /// A configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A configuration's images are not as they should be.
    #[error(transparent)]
    Data(#[from] DataError),
    /// Ranks cannot share a global batch evenly.
    #[error("a global batch of {global_batch} cannot be shared by {ranks} ranks")]
    Uneven {
        /// Images.
        global_batch: usize,
        /// Ranks.
        ranks: usize,
    },
    /// A rank count of zero.
    #[error("0 ranks cannot train")]
    NoRanks,
    /// More nodes than this job has.
    #[error("{wanted} nodes, but {}", .available.map_or_else(
        || "this is no Slurm job: slurm/bench.sh submits one".to_owned(),
        |nodes| format!("this Slurm job has {nodes}")))]
    Nodes {
        /// What the command line says.
        wanted: usize,
        /// What Slurm says.
        available: Option<usize>,
    },
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A cluster's file cannot be used.
    #[error("cluster {}: {problem}", path.display())]
    Cluster {
        /// The file.
        path: PathBuf,
        /// Why not.
        problem: String,
    },
    /// A program cannot be started.
    #[error("cannot start {program}: {source}")]
    Start {
        /// Which.
        program: String,
        /// Why not.
        source: io::Error,
    },
    /// A program failed.
    #[error("{program} ended with {status}: {output}")]
    Ended {
        /// Which.
        program: String,
        /// How.
        status: ExitStatus,
        /// The last it wrote.
        output: String,
    },
    /// A program took too long.
    #[error("{program} was stopped after {seconds} s: {output}")]
    TimedOut {
        /// Which.
        program: String,
        /// How long it was given.
        seconds: u64,
        /// The last it wrote.
        output: String,
    },
    /// What a program has written is not what was expected.
    #[error("{what}: {problem}")]
    Unexpected {
        /// What was read.
        what: &'static str,
        /// What is wrong with it.
        problem: String,
    },
}

/// The result of a measurement.
pub type Result<T> = std::result::Result<T, BenchError>;
