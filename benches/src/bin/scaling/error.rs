//! Errors of measuring and predicting.

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;

use job::config::ConfigError;
use job::dataset::DataError;

/// Why something cannot be measured or predicted.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The launcher or the trainer is not built.
    #[error("{} is not built: run `cargo build --release -p launcher -p trainer`", .0.display())]
    NotBuilt(PathBuf),
    /// A configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A configuration's data set is missing or invalid.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A global batch is no multiple of the number of ranks.
    #[error("a global batch of {global_batch} cannot be split evenly over {ranks} ranks")]
    Uneven {
        /// Images in the global batch.
        global_batch: usize,
        /// Number of ranks.
        ranks: usize,
    },
    /// A rank count of zero.
    #[error("a rank count of 0; at least 1 is needed")]
    NoRanks,
    /// More nodes are asked for than this job has.
    #[error("{wanted} nodes are asked for, but {}", .available.map_or_else(
        || "this is not a Slurm job; submit one with slurm/bench.sh".to_owned(),
        |nodes| format!("this Slurm job has {nodes}")))]
    Nodes {
        /// Nodes that the command line asks for.
        wanted: usize,
        /// Nodes of the Slurm job; `None` outside of one.
        available: Option<usize>,
    },
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
    /// A cluster's file cannot be used.
    #[error("cluster {}: {problem}", path.display())]
    Cluster {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A program cannot be started.
    #[error("cannot start {program}: {source}")]
    Start {
        /// The program.
        program: String,
        /// The error of the operating system.
        source: io::Error,
    },
    /// A program failed.
    #[error("{program} ended with {status}: {output}")]
    Ended {
        /// The program.
        program: String,
        /// Its exit status.
        status: ExitStatus,
        /// The last lines of its output.
        output: String,
    },
    /// A program took too long.
    #[error("{program} was stopped after {seconds} s: {output}")]
    TimedOut {
        /// The program.
        program: String,
        /// Its time limit in seconds.
        seconds: u64,
        /// The last lines of its output.
        output: String,
    },
    /// What a program has written is not what was expected.
    #[error("{what}: {problem}")]
    Unexpected {
        /// The file or output that was read.
        what: &'static str,
        /// What is wrong with it.
        problem: String,
    },
}

/// The result of a measurement.
pub type Result<T> = std::result::Result<T, BenchError>;
