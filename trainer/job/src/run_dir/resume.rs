//! Where a run starts from.

use std::path::PathBuf;
use std::str::FromStr;

/// Where a run starts from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Resume {
    /// The newest good checkpoint of the run directory, where it holds a run.
    #[default]
    Auto,
    /// The beginning, in a directory that holds no run.
    Never,
    /// Another run's directory or a checkpoint, in a directory that holds no run, or one that began
    /// there: then its own newest good checkpoint, where it has one.
    From(PathBuf),
}

impl FromStr for Resume {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "never" => Ok(Self::Never),
            "" => Err("expected auto, never, or a directory".to_string()),
            folder => Ok(Self::From(PathBuf::from(folder))),
        }
    }
}

impl std::fmt::Display for Resume {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Never => f.write_str("never"),
            Self::From(folder) => write!(f, "{}", folder.display()),
        }
    }
}
