//! Messages between launchers.

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

/// What a launcher tells others about itself before a job begins.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Introduction {
    /// Version of the launcher.
    pub version: String,
    /// [`control::PROTOCOL`] of the launcher; 0 if it does not send one.
    #[serde(default)]
    pub protocol: u32,
    /// Host name of the machine, as it reports it.
    pub host: String,
    /// Number of nodes in the job, as this launcher was told.
    pub nodes: usize,
    /// Rank of this node, from 0.
    pub node_rank: usize,
    /// Number of ranks on this node.
    pub ranks: usize,
    /// Device that its ranks compute on.
    pub device: String,
    /// The configuration, as JSON.
    pub config: serde_json::Value,
    /// Hash of all images and labels, in hexadecimal; empty where a doctor has not got them.
    pub data_hash: String,
    /// Time of its clock when it joined, in seconds since 1970.
    pub unix_seconds: f64,
}

impl Introduction {
    /// Creates the introduction of this launcher, with `ranks` ranks on `device`.
    ///
    /// # Errors
    /// When the configuration cannot be converted to JSON.
    pub fn new(
        cluster: &Cluster,
        ranks: usize,
        device: Device,
        config: &Config,
        data_hash: String,
    ) -> Result<Self, LaunchError> {
        let config = serde_json::to_value(config)
            .map_err(|error| io::Error::other(error.to_string()))
            .map_err(LaunchError::system("convert the configuration to JSON"))?;
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

/// A launcher's message that it cannot take part in the job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Unable {
    /// Host name of the machine, as it reports it.
    pub host: String,
    /// Rank of its node.
    pub node_rank: usize,
    /// Exit code of its launcher.
    pub exit_code: u8,
    /// The reason.
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

/// An event of a rank, from the launcher that has started it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum RankEvent {
    /// Its process was started.
    Spawned {
        /// The rank.
        rank: usize,
        /// Process id of the rank.
        pid: u32,
    },
    /// It has sent a message.
    Said {
        /// The rank.
        rank: usize,
        /// The message.
        message: ToLauncher,
    },
    /// Its launcher has refused it: their versions or protocols differ.
    Refused {
        /// The rank.
        rank: usize,
        /// The reason.
        reason: String,
    },
    /// Its process has ended.
    Exited {
        /// The rank.
        rank: usize,
        /// How it ended.
        exit: Exit,
        /// Milliseconds from its end until this was noted.
        ago_ms: u64,
    },
}

impl RankEvent {
    /// Returns the rank that this is about.
    pub const fn rank(&self) -> usize {
        match self {
            Self::Spawned { rank, .. }
            | Self::Said { rank, .. }
            | Self::Refused { rank, .. }
            | Self::Exited { rank, .. } => *rank,
        }
    }
}

/// A message to node 0's launcher.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum ToLeader {
    /// The first message of a launcher that joins.
    Join(Box<Introduction>),
    /// The first message of a launcher that cannot take part, or the last of one that has joined and cannot
    /// start its ranks.
    Decline(Unable),
    /// An event of a rank.
    RankEvent(RankEvent),
    /// The signal of this name asked this launcher to stop.
    Signal(String),
    /// The signal of this name asked this launcher again, from somebody who will not wait for a checkpoint.
    StopNow(String),
    /// The end of a rank's log, after its process has ended.
    Log {
        /// The rank.
        rank: usize,
        /// Path of the log, on the rank's node.
        path: PathBuf,
        /// The last lines.
        tail: Vec<String>,
    },
    /// All ranks of this node have ended, and all messages about the attempt have been sent.
    AttemptEnded,
    /// Heartbeat: the launcher is running.
    Heartbeat,
}

/// A message from node 0's launcher.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum ToMember {
    /// Every node has joined.
    Welcome {
        /// Number of ranks of each node.
        layout: Vec<usize>,
        /// Host name of each node.
        hosts: Vec<String>,
        /// Node 0's run directory.
        run_dir: PathBuf,
        /// The configuration, a YAML document.
        config: String,
    },
    /// Start this node's ranks.
    Start {
        /// Value of the trainer's `--resume`.
        resume: String,
    },
    /// Ask this node's ranks to save a checkpoint and exit.
    Stop {
        /// The reason.
        reason: String,
    },
    /// Kill this node's ranks.
    Kill,
    /// The answer to a rank's [`Get`](ToLauncher::Get).
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
    /// The job has ended, or cannot begin.
    Finish {
        /// Exit code of the launcher.
        exit_code: u8,
        /// Why, for a person; empty when all is well.
        text: String,
    },
    /// Heartbeat: the launcher is running.
    Heartbeat,
}
