//! Messages between a trainer and its launcher: who is alive, what they are doing, when to stop.
//!
//! Each rank has one Unix socket. A frame is a length in four bytes, little-endian, and that many bytes of
//! JSON. This module holds the messages and the trainer's end; the launcher's end is asynchronous and lives
//! in the `launcher` crate.

mod client;
mod frame;

pub use client::{ControlClient, HEARTBEAT_INTERVAL, StopFlag};
pub use frame::{MAX_FRAME_BYTES, body_len, decode, encode, read_frame, write_frame};

use serde::{Deserialize, Serialize};

use crate::Blame;

/// Version of the control protocol. Changes when any message, also one between launchers, changes its
/// meaning; both ends of a connection must have the same.
pub const PROTOCOL: u32 = 6;

/// What a rank is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Connecting to its peers.
    Connecting,
    /// Reading the data set.
    LoadingData,
    /// Building the network, or reading a checkpoint.
    Preparing,
    /// Taking steps.
    Training,
    /// Going through the test set.
    Evaluating,
    /// Writing a checkpoint.
    Saving,
}

/// A message from a trainer to its launcher.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToLauncher {
    /// The first message.
    Hello {
        /// The sender's [`PROTOCOL`].
        protocol: u32,
        /// The sender's rank.
        rank: usize,
        /// The sender's process id.
        pid: u32,
        /// The sender's crate version.
        version: String,
    },
    /// Heartbeat: the process runs. Sent once a second, whatever the rank does or waits for.
    Heartbeat,
    /// Publishes a value under a key, for ranks to find each other.
    Put {
        /// The key.
        key: String,
        /// The value.
        value: String,
    },
    /// Asks for a key's value; the answer comes once some rank has published it.
    Get {
        /// The key.
        key: String,
    },
    /// Sent when the phase changes and about once a second within one.
    State {
        /// What the rank is doing.
        phase: Phase,
        /// The epoch, from 1; 0 before the first.
        epoch: usize,
        /// Optimizer steps completed since the start of the run.
        step: u64,
    },
    /// Progress within an epoch. Sent by rank 0, at most several times a second.
    Progress {
        /// The epoch, from 1.
        epoch: usize,
        /// Number of epochs in the run.
        epochs: usize,
        /// Steps completed in this epoch.
        step: usize,
        /// Number of steps in an epoch.
        steps: usize,
        /// Mean training loss of the epoch so far.
        loss: f64,
        /// Training accuracy of the epoch so far, as a fraction.
        accuracy: f64,
        /// Images per second over all ranks.
        images_per_s: f64,
    },
    /// The rank is about to exit with this code for this reason.
    Failed {
        /// One of the documented exit codes.
        exit_code: u8,
        /// A message for a person.
        message: String,
        /// Whom the rank holds responsible.
        blame: Blame,
    },
}

/// A message from the launcher to a trainer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToTrainer {
    /// Answers [`ToLauncher::Get`].
    Value {
        /// The key.
        key: String,
        /// The value.
        value: String,
    },
    /// Save a checkpoint at the next step boundary and exit.
    Stop {
        /// Why, for a person.
        reason: String,
    },
}
