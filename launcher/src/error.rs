//! Why a job cannot be started or continued, and the exit code of each reason.

use std::io;
use std::path::PathBuf;

use job::ExitCode;

use crate::plan::PlanError;

/// Why a job cannot be started or continued.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The signal of this name asked the launcher to stop.
    #[error("stopped by {0} before the job began")]
    StoppedEarly(&'static str),
    /// The command line names no configuration file.
    #[error("no CONFIG: name a YAML file, such as configs/resnet18.yaml, or see --help")]
    NoConfig,
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] job::config::ConfigError),
    /// The configuration, the devices and the command line do not fit together.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The data set is missing or bad.
    #[error(transparent)]
    Data(#[from] job::dataset::DataError),
    /// The data set is missing or bad, and the run that is resumed began with it, so that synthetic images
    /// must not replace it.
    #[error(
        "{0}; the run began with these images, and data.fallback does not replace them in mid-run"
    )]
    DataGone(job::dataset::DataError),
    /// The run directory cannot be used.
    #[error(transparent)]
    RunDir(#[from] job::run_dir::RunDirError),
    /// The options, or Slurm's variables, that describe the nodes are incomplete or do not fit together.
    #[error("{0}")]
    Nodes(String),
    /// The token cannot be read or made.
    #[error(transparent)]
    Token(#[from] crate::cluster::token::TokenError),
    /// The launchers of a job do not come together, one of them is lost, or MPI between them cannot be set
    /// up.
    #[error("{text}")]
    Cluster {
        /// Exit code of all launchers of the job.
        exit_code: ExitCode,
        /// Who is missing, or what differs or failed, and where.
        text: String,
    },
    /// A study cannot be run, or its results cannot be written.
    #[error("{text}")]
    Study {
        /// The launcher's exit code.
        exit_code: ExitCode,
        /// The reason.
        text: String,
    },
    /// `srun` started more than one launcher on a machine.
    #[error(
        "srun started {launchers} launchers on {nodes} nodes; one launcher starts all ranks of its \
         node: srun --ntasks-per-node=1, or sbatch slurm/train.sh"
    )]
    SeveralLaunchers {
        /// Tasks of the step.
        launchers: usize,
        /// Machines of the step.
        nodes: usize,
    },
    /// There is no trainer to start.
    #[error(
        "no trainer found: neither {} nor `trainer` on PATH; build it with \
         `cargo build --release -p trainer`",
        beside.display()
    )]
    NoTrainer {
        /// Path beside the launcher's executable, which is looked at first.
        beside: PathBuf,
    },
    /// A trainer could not be started.
    #[error("cannot start rank {rank} ({}): {source}", trainer.display())]
    Spawn {
        /// The rank.
        rank: usize,
        /// Path of the trainer.
        trainer: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
    /// The operating system refused something that supervision needs.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried, as a phrase that goes after "cannot".
        what: String,
        /// The error of the operating system.
        source: io::Error,
    },
}

impl LaunchError {
    /// Returns the exit code that the launcher ends with.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Config(error) => error.exit_code(),
            Self::Data(error) | Self::DataGone(error) => error.exit_code(),
            Self::RunDir(error) => error.exit_code(),
            Self::Plan(error) => error.exit_code(),
            Self::Nodes(_) | Self::NoConfig => ExitCode::Usage,
            Self::StoppedEarly(_) => ExitCode::Stopped,
            Self::Cluster { exit_code, .. } | Self::Study { exit_code, .. } => *exit_code,
            Self::Token(_)
            | Self::SeveralLaunchers { .. }
            | Self::NoTrainer { .. }
            | Self::Spawn { .. }
            | Self::System { .. } => ExitCode::Setup,
        }
    }

    /// Returns a function for `map_err` that makes a [`LaunchError::Cluster`] of a sentence.
    pub fn cluster(exit_code: ExitCode) -> impl FnOnce(String) -> Self {
        move |text| Self::Cluster { exit_code, text }
    }

    /// Returns a function for `map_err` that makes a [`LaunchError::System`]; `what` says what was tried.
    pub fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::System { what, source }
    }
}
