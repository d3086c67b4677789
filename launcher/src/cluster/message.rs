//! What launchers say to each other.

use std::io;
use std::path::PathBuf;

use comm::control::{self, ToLauncher};
use job::ExitCode;
use job::config::Config;
use serde::{Deserialize, Serialize};

use super::Cluster;
use crate::error::LaunchError;
use crate::plan::Device;
use crate::policy::Exit;

/// What a launcher says of itself before a job begins.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Introduction {
    /// Of the launcher.
    pub version: String,
    /// [`control::PROTOCOL`]; 0 of one that does not say it.
    #[serde(default)]
    pub protocol: u32,
    /// The machine's name for itself.
    pub host: String,
    /// Machines in the job, as this launcher was told.
    pub nodes: usize,
    /// This machine's place among them.
    pub node_rank: usize,
    /// Ranks on this machine.
    pub ranks: usize,
    /// What they compute on.
    pub device: String,
    /// The configuration.
    pub config: serde_json::Value,
    /// Of the images and labels; empty where a doctor has not got them.
    pub data_hash: String,
    /// What its clock says, in seconds since 1970.
    pub unix_seconds: f64,
}

impl Introduction {
    /// Of this launcher, for `ranks` on `device`.
    ///
    /// # Errors
    /// When the configuration cannot be described.
    pub fn new(
        cluster: &Cluster,
        ranks: usize,
        device: Device,
        config: &Config,
        data_hash: String,
    ) -> Result<Self, LaunchError> {
        let config = serde_json::to_value(config)
            .map_err(|error| io::Error::other(error.to_string()))
            .map_err(LaunchError::system("describe the configuration"))?;
        Ok(Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            protocol: control::PROTOCOL,
            host: job::host::name(),
            nodes: cluster.nodes,
            node_rank: cluster.node_rank,
            ranks,
            device: device.name().to_owned(),
            config,
            data_hash,
            unix_seconds: super::unix_seconds(),
        })
    }
}

/// What a launcher says that cannot take part.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Unable {
    /// The machine's name for itself.
    pub host: String,
    /// Its place among the machines.
    pub node_rank: usize,
    /// How its launcher ends.
    pub exit_code: u8,
    /// Why.
    pub text: String,
}

impl std::fmt::Display for Unable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "node {} ({}) cannot take part: {}", self.node_rank, self.host, self.text)
    }
}

impl From<Unable> for LaunchError {
    fn from(unable: Unable) -> Self {
        let exit_code = ExitCode::from_code(unable.exit_code).unwrap_or(ExitCode::Setup);
        Self::Cluster { exit_code, text: unable.to_string() }
    }
}

/// Something about a rank, from the launcher that has started it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum News {
    /// It runs.
    Spawned {
        /// Which rank.
        rank: usize,
        /// Its process.
        pid: u32,
    },
    /// It said something.
    Said {
        /// Which rank.
        rank: usize,
        /// What.
        message: ToLauncher,
    },
    /// It does not fit its launcher.
    Refused {
        /// Which rank.
        rank: usize,
        /// Why.
        reason: String,
    },
    /// Its process has ended.
    Exited {
        /// Which rank.
        rank: usize,
        /// How.
        exit: Exit,
        /// How long ago.
        ago_ms: u64,
    },
}

impl News {
    /// Which rank it is about.
    pub const fn rank(&self) -> usize {
        match self {
            Self::Spawned { rank, .. }
            | Self::Said { rank, .. }
            | Self::Refused { rank, .. }
            | Self::Exited { rank, .. } => *rank,
        }
    }
}

/// To node 0's launcher.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum ToCoordinator {
    /// The first message.
    Join(Box<Introduction>),
    /// The first message of one that cannot take part, or the last of one that has joined and cannot start its part.
    Decline(Unable),
    /// About a rank.
    News(News),
    /// Somebody asked this launcher to stop, by this signal.
    Signal(String),
    /// Somebody asked again, and will not wait for a checkpoint.
    StopNow(String),
    /// The end of a rank's log, after its process has ended.
    Log {
        /// Which rank.
        rank: usize,
        /// The file, on its node.
        path: PathBuf,
        /// The last lines.
        tail: Vec<String>,
    },
    /// All of an attempt has been said.
    AttemptEnded,
    /// Nothing but that the launcher is there.
    Alive,
}

/// From node 0's launcher.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum ToMember {
    /// Every node is there.
    Welcome {
        /// Ranks of each node.
        layout: Vec<usize>,
        /// Each node's name.
        hosts: Vec<String>,
        /// Where the run is kept.
        run_dir: PathBuf,
        /// The configuration, a YAML document.
        config: String,
    },
    /// Start this node's ranks.
    Start {
        /// As the trainer's `--resume` takes it.
        resume: String,
    },
    /// Have ranks save a checkpoint and exit.
    Stop {
        /// Why.
        reason: String,
    },
    /// Kill this node's ranks.
    Kill,
    /// Answers a rank's `Get`.
    Value {
        /// The key.
        key: String,
        /// The value.
        value: String,
    },
    /// Run this shell command, a daemon of MPI, beside the ranks.
    Daemon {
        /// The command line.
        command: String,
    },
    /// The job has ended, or there is none.
    Finish {
        /// How the launcher ends.
        exit_code: u8,
        /// Why, for a person; empty when all is well.
        text: String,
    },
    /// Nothing but that the launcher is there.
    Alive,
}
