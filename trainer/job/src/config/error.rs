//! What can be wrong with a configuration, and where.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::ExitCode;

/// Where a value was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// In the file.
    File {
        /// The configuration file.
        path: PathBuf,
        /// Line and column, from 1; `None` for a key that the file does not give.
        at: Option<(usize, usize)>,
    },
    /// On the command line.
    Override {
        /// `key=value` as given.
        text: String,
    },
}

impl Location {
    /// One in a file.
    pub(super) fn in_file(path: &Path, at: Option<(usize, usize)>) -> Self {
        Self::File { path: path.to_path_buf(), at }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, at: Some((line, column)) } => {
                write!(f, "{}:{line}:{column}", path.display())
            }
            Self::File { path, at: None } => write!(f, "{}", path.display()),
            Self::Override { text } => write!(f, "--set {text}"),
        }
    }
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: cannot be read: {source}", path.display())]
    Read {
        /// The configuration file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The file, or the value of an override, is not YAML.
    #[error("{location}: not valid YAML: {problem}")]
    Syntax {
        /// Where.
        location: Location,
        /// What the parser says.
        problem: String,
    },
    /// A key or its value is wrong.
    #[error("{location}: {key}: {problem}")]
    Key {
        /// Where it was given.
        location: Location,
        /// Its dotted path.
        key: String,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// An override is not `key=value`.
    #[error("--set {text}: {problem}")]
    Override {
        /// As given.
        text: String,
        /// What is wrong, and what would be right.
        problem: String,
    },
}

impl ConfigError {
    /// Always [`ExitCode::Usage`].
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::Usage
    }
}
