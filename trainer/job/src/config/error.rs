//! Errors in a configuration, and their locations.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::ExitCode;

/// The place where a value was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// In a file.
    File {
        /// The configuration file.
        path: PathBuf,
        /// Line and column, from 1; `None` for a key that the file does not give.
        at: Option<(usize, usize)>,
    },
    /// In an override on the command line.
    Override {
        /// `key=value` as given.
        text: String,
    },
}

impl Location {
    /// Makes a location in a file.
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
        /// The I/O error.
        source: std::io::Error,
    },
    /// The file, or the value of an override, is not YAML.
    #[error("{location}: not valid YAML: {problem}")]
    Syntax {
        /// Place of the syntax error.
        location: Location,
        /// The parser's message.
        problem: String,
    },
    /// A key or its value is wrong.
    #[error("{location}: {key}: {problem}")]
    Key {
        /// Place where the key was given.
        location: Location,
        /// Dotted path of the key.
        key: String,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// An override is not `key=value`.
    #[error("--set {text}: {problem}")]
    Override {
        /// The override as given.
        text: String,
        /// What is wrong, and what would be right.
        problem: String,
    },
}

impl ConfigError {
    /// Returns [`ExitCode::Usage`].
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::Usage
    }
}
