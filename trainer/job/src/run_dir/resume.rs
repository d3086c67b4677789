//! The starting point of a run.

use std::path::PathBuf;
use std::str::FromStr;

/// The starting point of a run (`--resume`).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Resume {
    /// The newest good checkpoint of the run directory if it holds a run, else the beginning.
    #[default]
    Auto,
    /// The beginning; the directory must not hold a run.
    Never,
    /// Another run's directory or a checkpoint. The run directory must not hold a run, except one that was
    /// started from there: that is resumed from its own newest good checkpoint, if it has one.
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
