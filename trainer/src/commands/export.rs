//! `trainer export`: writes a checkpoint's weights for another program.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use job::config::Stem;
use job::network::names;
use tracing::warn;

use super::trained::Trained;
use crate::checkpoint::{self, tensors};
use crate::{Result, TrainError};

/// `trainer export`.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// A checkpoint, or a run directory, of which the newest good one is taken.
    pub checkpoint: PathBuf,
    /// The naming of the tensors.
    #[arg(long, value_enum)]
    pub format: Format,
    /// Export the moving average of the weights instead of the weights.
    #[arg(long)]
    pub ema: bool,
    /// The safetensors file to write; default: MODEL-FORMAT.safetensors in the current directory.
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// A naming of tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// As in torchvision: `downsample`, `fc`.
    Torchvision,
    /// As in the notes' module and in checkpoints: `shortcut`, `linear`.
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

/// Writes the weights to a safetensors file and returns its path.
///
/// # Errors
/// When there is no good checkpoint, torchvision does not have the network, or the file cannot be written.
pub fn export(args: &ExportArgs) -> Result<PathBuf> {
    let trained = Trained::find(&args.checkpoint, &[])?;
    let mut named = checkpoint::read_weights(&trained.path, trained.weights(args.ema)?)?;
    let model = trained.config.model;
    if args.format == Format::Torchvision {
        if !model.name.entry().in_torchvision {
            return Err(TrainError::Usage(format!("torchvision has no {}", model.name)));
        }
        if model.stem != Stem::Imagenet {
            warn!(
                "torchvision's {} has the imagenet stem, this network has stem {}: adapt \
                 torchvision's module before loading the file",
                model.name,
                model.stem.as_str()
            );
        }
        named.iter_mut().for_each(|(name, _)| *name = names::to_torchvision(name));
    }
    let output = args.output.clone().unwrap_or_else(|| {
        PathBuf::from(format!("{}-{}.safetensors", model.name, args.format.as_str()))
    });
    tensors::write(&output, &named)?;
    Ok(output)
}
