//! The command line.

use std::path::PathBuf;

use clap::Parser;
use job::run_dir::Resume;

use crate::device::DeviceKind;

/// Trains one rank of a data-parallel job. Usually started by `launcher`; alone it is a job of one
/// rank, and under `mpirun` or `srun` one of many.
#[derive(Debug, Parser)]
#[command(version)]
pub struct Cli {
    /// The configuration, a YAML file.
    pub config: PathBuf,
    /// Override one configuration key; repeatable: --set train.epochs=2
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Where the run's files go; default: runs/CONFIG-TIME, in UTC.
    #[arg(long, value_name = "DIR")]
    pub run_dir: Option<PathBuf>,
    /// Go on from the run directory's newest good checkpoint (auto), never, or from DIR's.
    #[arg(long, value_name = "auto|never|DIR", default_value = "auto")]
    pub resume: Resume,
    /// Where to train.
    #[arg(long, value_enum, default_value = "auto")]
    pub device: DeviceKind,
}
