//! `trainer export`: a checkpoint's weights for another program.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use job::config::{self, Stem};
use job::network::names;
use job::run_dir::RunDir;
use tracing::warn;

use crate::checkpoint::{self, CheckpointError};
use crate::{Result, TrainError};

/// `trainer export`.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// A checkpoint, or a run directory, of which the newest good one is taken.
    pub checkpoint: PathBuf,
    /// Whose names the tensors get.
    #[arg(long, value_enum)]
    pub format: Format,
    /// The safetensors file to write; default: MODEL-FORMAT.safetensors, here.
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// Whose names tensors have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Torchvision's: `downsample`, `fc`.
    Torchvision,
    /// The notes' module's, which are those of checkpoints: `shortcut`, `linear`.
    Notes,
}

impl Format {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Torchvision => "torchvision",
            Self::Notes => "notes",
        }
    }
}

/// Writes the file and returns its path.
///
/// # Errors
/// When there is no good checkpoint in a run directory, torchvision does not have its network, or the
/// file cannot be written.
pub fn export(args: &ExportArgs) -> Result<PathBuf> {
    let found = checkpoint::find(&args.checkpoint)
        .and_then(|found| {
            let (path, tried) = (args.checkpoint.clone(), Vec::new());
            found.ok_or(CheckpointError::NoneGood { path, tried })
        })
        .map_err(|error| TrainError::Usage(error.to_string()))?;
    for refused in &found.refused {
        warn!("{refused}; taking an older one");
    }
    let model = config::load(&config_of(&found.path), &[])?.model;
    let mut tensors = checkpoint::read_model(&found.path)?;
    if args.format == Format::Torchvision {
        if !model.name.entry().in_torchvision {
            return Err(TrainError::Usage(format!("torchvision has no {}", model.name)));
        }
        if model.stem != Stem::Imagenet {
            warn!(
                "torchvision's {} has the imagenet stem, this one has stem {}: change the module \
                 there before it loads",
                model.name,
                model.stem.as_str()
            );
        }
        tensors.iter_mut().for_each(|(name, _)| *name = names::to_torchvision(name));
    }
    let output = args.output.clone().unwrap_or_else(|| {
        PathBuf::from(format!("{}-{}.safetensors", model.name, args.format.as_str()))
    });
    tch::Tensor::write_safetensors(&tensors, &output).map_err(|error| CheckpointError::Io {
        action: "write",
        path: output.clone(),
        reason: error.to_string(),
    })?;
    Ok(output)
}

/// The configuration of the run that wrote a checkpoint.
fn config_of(checkpoint: &Path) -> PathBuf {
    // `checkpoints/best` and a path from within the folder lead to the run as well.
    let checkpoint = checkpoint.canonicalize().unwrap_or_else(|_| checkpoint.to_owned());
    let run = checkpoint.parent().and_then(Path::parent).unwrap_or(&checkpoint);
    RunDir::at(run).config_path()
}
