//! Errors of run directories.

use std::io;
use std::path::PathBuf;

use crate::ExitCode;
use crate::config::{ConfigError, Difference};

/// Why a run directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RunDirError {
    /// The directory already holds a run, which is not to be resumed.
    #[error(
        "{} already holds a run, which is not overwritten; give another --run-dir, or --resume \
         auto to resume it", root.display()
    )]
    HoldsRun {
        /// The run directory.
        root: PathBuf,
    },
    /// The directory holds a run with another configuration in keys that affect training.
    #[error(
        "{} holds a run with another configuration, so it cannot be resumed: {}; give the same \
         configuration or another --run-dir", root.display(), listed(differences)
    )]
    Different {
        /// The run directory.
        root: PathBuf,
        /// The differences; never empty.
        differences: Vec<Difference>,
    },
    /// The configuration of the directory's run cannot be read.
    #[error("{} holds a run whose configuration cannot be read: {source}", root.display())]
    Config {
        /// The run directory.
        root: PathBuf,
        /// Why it cannot be read.
        #[source]
        source: ConfigError,
    },
    /// The directory given to `--resume` does not exist.
    #[error("--resume {}: no such directory", from.display())]
    NoSource {
        /// The path as given.
        from: PathBuf,
    },
    /// Another process holds the directory's lock.
    #[error("{} is in use by {holder} (lock {})", root.display(), lock.display())]
    InUse {
        /// The run directory.
        root: PathBuf,
        /// The lock file.
        lock: PathBuf,
        /// Process and host of the holder, as far as known.
        holder: String,
    },
    /// The directory, or a file of it, cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// Path of the file or folder.
        path: PathBuf,
        /// The I/O error.
        source: io::Error,
    },
}

fn listed(differences: &[Difference]) -> String {
    let lines: Vec<String> = differences.iter().map(ToString::to_string).collect();
    lines.join("; ")
}

impl RunDirError {
    /// Returns [`ExitCode::Setup`] if a file cannot be written, else [`ExitCode::Usage`].
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Write { .. } => ExitCode::Setup,
            _ => ExitCode::Usage,
        }
    }
}
