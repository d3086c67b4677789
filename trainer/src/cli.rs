//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use job::ExitCode;
use job::run_dir::Resume;
use serde_json::Value;

use crate::commands;
use crate::device::DeviceKind;

/// Trains one rank of a data-parallel job. Usually started by `launcher`; alone it is a job of one
/// rank, and under `mpirun` or `srun` one of many.
#[derive(Debug, Parser)]
#[command(
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = format!("{}.", ExitCode::help())
)]
pub struct Cli {
    /// A subcommand instead of training.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The arguments of a training run; `None` with a subcommand.
    #[command(flatten)]
    pub train: Option<TrainArgs>,
}

/// Subcommands of the trainer other than training.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List the networks with their costs and sources.
    Models(commands::models::ModelsArgs),
    /// Print a network's layers, their shapes, parameters and multiply-adds.
    Summary(commands::summary::SummaryArgs),
    /// Write a checkpoint's weights under the names of another program.
    Export(commands::export::ExportArgs),
    /// Measure a checkpoint on the data set's test images: accuracy, loss, confusion matrix.
    Eval(commands::eval::EvalArgs),
    /// Draw training images as a configuration augments them.
    Augment(commands::augment::AugmentArgs),
    /// Print the likeliest classes of images according to a checkpoint.
    Predict(commands::predict::PredictArgs),
}

/// Arguments of one rank of a training job.
#[derive(Debug, Args)]
pub struct TrainArgs {
    /// The configuration, a YAML file.
    pub config: PathBuf,
    /// Override one configuration key; repeatable: --set train.epochs=2
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// The directory for the run's files; default: runs/CONFIG-TIME, in UTC.
    #[arg(long, value_name = "DIR")]
    pub run_dir: Option<PathBuf>,
    /// Resume from the newest good checkpoint of the run directory (auto) or of DIR, or not at all (never).
    #[arg(long, value_name = "auto|never|DIR", default_value = "auto")]
    pub resume: Resume,
    /// Start from torchvision's weights: a state dict as safetensors. Short for
    /// --set model.from_torchvision=FILE
    #[arg(long, value_name = "FILE")]
    pub from_torchvision: Option<PathBuf>,
    /// The device to train on.
    #[arg(long, value_enum, default_value = "auto")]
    pub device: DeviceKind,
    /// Measure an all-reduce of the gradients instead of training, for `launcher doctor`.
    #[arg(long, hide = true)]
    pub measure_all_reduce: bool,
}

impl TrainArgs {
    /// Returns all configuration overrides, in the order in which they apply.
    pub fn overrides(&self) -> Vec<String> {
        let file = self.from_torchvision.iter();
        // Quoted as a JSON string, which is also a valid YAML scalar.
        let quoted = file.map(|file| Value::from(file.to_string_lossy()));
        let from_torchvision = quoted.map(|file| format!("model.from_torchvision={file}"));
        self.set.iter().cloned().chain(from_torchvision).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_of_weights_is_the_one_that_was_given() {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("c.yaml");
        std::fs::write(&config, "model: {name: resnet18, stem: imagenet}\n").unwrap();
        for file in ["a.safetensors", "/tmp/w #1/x", "w: 1/x", "~", "it's \"x\"", "1", " a\\\n"] {
            let config = config.as_os_str();
            let args = ["trainer".as_ref(), config, "--from-torchvision".as_ref(), file.as_ref()];
            let train = Cli::try_parse_from(args).unwrap().train.unwrap();
            let loaded = job::config::load(&train.config, &train.overrides()).unwrap();
            assert_eq!(loaded.model.from_torchvision.as_deref(), Some(file.as_ref()));
        }
    }
}
