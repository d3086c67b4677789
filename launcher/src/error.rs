//! What can keep a job from starting, and the exit code of each.

use std::io;
use std::path::PathBuf;

use job::ExitCode;

use crate::plan::PlanError;

/// A job that cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// Somebody asked it to stop.
    #[error("stopped by {0} before the job began")]
    StoppedEarly(&'static str),
    /// There is none.
    #[error("no CONFIG: name a YAML file, such as configs/resnet18.yaml, or see --help")]
    NoConfig,
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] job::config::ConfigError),
    /// The configuration, the devices and the command line do not fit.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The data set is missing or bad.
    #[error(transparent)]
    Data(#[from] job::dataset::DataError),
    /// It is missing, and a run that began with it goes on with no other.
    #[error(
        "{0}; the run began with these images, and data.fallback does not replace them half-way"
    )]
    DataGone(job::dataset::DataError),
    /// The run directory cannot be used.
    #[error(transparent)]
    RunDir(#[from] job::run_dir::RunDirError),
    /// The options that say which machines there are do not fit each other.
    #[error("{0}")]
    Nodes(String),
    /// There is no token.
    #[error(transparent)]
    Token(#[from] crate::cluster::token::TokenError),
    /// The launchers of a job do not come together, or one of them is lost.
    #[error("{text}")]
    Cluster {
        /// How all of them end.
        exit_code: ExitCode,
        /// Who is missing, or what differs, and where.
        text: String,
    },
    /// A study cannot be run, or what it shows not be written.
    #[error("{text}")]
    Study {
        /// How the launcher ends.
        exit_code: ExitCode,
        /// Why.
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
        "no trainer: neither {} nor `trainer` in a directory of PATH; build it with \
         `cargo build --release -p trainer`",
        beside.display()
    )]
    NoTrainer {
        /// The first place looked at.
        beside: PathBuf,
    },
    /// A trainer could not be started.
    #[error("cannot start rank {rank} ({}): {source}", trainer.display())]
    Spawn {
        /// The rank.
        rank: usize,
        /// The program.
        trainer: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The operating system refused something that supervision needs.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: String,
        /// Why.
        source: io::Error,
    },
}

impl LaunchError {
    /// How the launcher ends.
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

    /// For `map_err`: a sentence, and how the launcher ends because of it.
    pub fn cluster(exit_code: ExitCode) -> impl FnOnce(String) -> Self {
        move |text| Self::Cluster { exit_code, text }
    }

    /// For `map_err`: what was tried.
    pub fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::System { what, source }
    }
}
