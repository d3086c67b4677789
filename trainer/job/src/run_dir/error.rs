//! Why a run directory cannot be used.

use std::io;
use std::path::PathBuf;

use crate::ExitCode;
use crate::config::{ConfigError, Difference};

/// Why a run directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RunDirError {
    /// It already holds a run, and that one is not to be resumed.
    #[error(
        "{} already holds a run, and nothing of it is overwritten; give another --run-dir, or \
         --resume auto to go on with it", root.display()
    )]
    HoldsRun {
        /// The run directory.
        root: PathBuf,
    },
    /// Its run was configured differently in what shapes training.
    #[error(
        "{} holds a run with another configuration, so it cannot go on from there: {}; give the \
         same configuration or another --run-dir", root.display(), listed(differences)
    )]
    Different {
        /// The run directory.
        root: PathBuf,
        /// What differs; never empty.
        differences: Vec<Difference>,
    },
    /// What its run was configured with cannot be read.
    #[error("{} holds a run whose configuration cannot be read: {source}", root.display())]
    Config {
        /// The run directory.
        root: PathBuf,
        /// Why not.
        #[source]
        source: ConfigError,
    },
    /// There is nothing to resume from.
    #[error("--resume {}: no such directory", from.display())]
    NoSource {
        /// As given.
        from: PathBuf,
    },
    /// Another process has it.
    #[error("{} is in use by {holder} (lock {})", root.display(), lock.display())]
    InUse {
        /// The run directory.
        root: PathBuf,
        /// The lock file.
        lock: PathBuf,
        /// Who, as far as it can be told.
        holder: String,
    },
    /// It cannot be written to.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

fn listed(differences: &[Difference]) -> String {
    let lines: Vec<String> = differences.iter().map(ToString::to_string).collect();
    lines.join("; ")
}

impl RunDirError {
    /// [`ExitCode::Setup`] where it cannot be written to, else [`ExitCode::Usage`].
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Write { .. } => ExitCode::Setup,
            _ => ExitCode::Usage,
        }
    }
}
