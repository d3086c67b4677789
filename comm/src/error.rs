//! Errors of communication between ranks, with what an operator needs to find the rank at fault.

use std::time::Duration;

use crate::Blame;

/// The result of an operation that involves peers.
pub type Result<T> = std::result::Result<T, CommError>;

/// A failure in which other ranks are involved.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum CommError {
    /// A collective failed on this rank; peers may be blocked in it.
    #[error("{op} #{sequence} failed on rank {rank}: {reason}")]
    Collective {
        /// The collective's name, such as `all_reduce`.
        op: &'static str,
        /// How many collectives this communicator had started before this one.
        sequence: u64,
        /// The rank that reports.
        rank: usize,
        /// What went wrong.
        reason: String,
    },
    /// A deadline passed while this rank waited for others.
    #[error("{op} #{sequence}: rank {rank} waited {waited:.1?} for {}; {detail}", ranks(missing))]
    Timeout {
        /// What was waited for, such as `all_reduce`.
        op: &'static str,
        /// How many collectives this communicator had started before this one.
        sequence: u64,
        /// The rank that waited.
        rank: usize,
        /// The ranks that did not come; empty when the backend cannot tell.
        missing: Vec<usize>,
        /// How long it waited.
        waited: Duration,
        /// What is known of the missing ranks, such as the last collective that they joined.
        detail: String,
    },
    /// A rank, possibly this one, gave up and told the others.
    #[error("rank {by} aborted the job: {reason}")]
    Aborted {
        /// The rank that aborted.
        by: usize,
        /// That rank's reason.
        reason: String,
        /// Whom that rank held responsible.
        blame: Blame,
    },
    /// A peer's process is gone.
    #[error("rank {rank} (process {pid}) is gone; {op} #{sequence} cannot complete")]
    PeerGone {
        /// The rank that is gone.
        rank: usize,
        /// The process id of that rank.
        pid: u32,
        /// The collective that was under way.
        op: &'static str,
        /// Its sequence number.
        sequence: u64,
    },
    /// A peer's process or the network to it is gone, and the backend cannot tell which peer.
    #[error("{op} #{sequence}: rank {rank} lost a peer that it cannot name; {reason}")]
    PeerLost {
        /// The collective that was under way.
        op: &'static str,
        /// Its sequence number.
        sequence: u64,
        /// The rank that reports.
        rank: usize,
        /// The backend's error message.
        reason: String,
    },
    /// Ranks called different collectives, or with different lengths or dtypes.
    #[error(
        "ranks disagree at collective #{sequence}: rank {rank} called {here}, rank {peer} called {there}"
    )]
    Mismatch {
        /// The sequence number at which they disagree.
        sequence: u64,
        /// The rank that reports.
        rank: usize,
        /// What the reporting rank called.
        here: String,
        /// The rank with which it disagrees.
        peer: usize,
        /// What `peer` called.
        there: String,
    },
    /// The backend does not support what the caller asked for.
    #[error("{backend} cannot {what}")]
    Unsupported {
        /// The backend's name.
        backend: &'static str,
        /// What was asked for.
        what: String,
    },
    /// The environment variables that describe the ranks are incomplete or contradictory.
    #[error("{0}")]
    Environment(String),
    /// The communication thread could not be spawned.
    #[error("cannot start a communication thread: {0}")]
    Thread(String),
    /// A collective panicked on this rank; peers may be blocked in it.
    #[error("collective #{sequence} panicked on this rank")]
    Panicked {
        /// How many collectives this communicator had started before this one.
        sequence: u64,
    },
    /// The ranks could not be connected.
    #[error("cannot connect ranks over {backend}: {reason}")]
    Connect {
        /// The backend's name.
        backend: &'static str,
        /// What went wrong, and what would help.
        reason: String,
    },
    /// The launcher could not be reached or broke the protocol.
    #[error("control connection to the launcher: {0}")]
    Control(String),
}

impl CommError {
    /// Returns which ranks are responsible for the error, as far as this rank can tell.
    pub fn blame(&self) -> Blame {
        match self {
            Self::Timeout { missing, .. } if missing.is_empty() => Blame::UnknownLate,
            Self::Timeout { missing, .. } => Blame::Late(missing.clone()),
            Self::Aborted { by, blame, .. } => blame.clone().reported_by(*by),
            Self::PeerGone { rank, .. } => Blame::Failed(*rank),
            Self::PeerLost { .. } => Blame::UnknownGone,
            Self::Connect { .. } => Blame::Unconnected,
            Self::Collective { .. }
            | Self::Mismatch { .. }
            | Self::Unsupported { .. }
            | Self::Environment(_)
            | Self::Thread(_)
            | Self::Panicked { .. }
            | Self::Control(_) => Blame::Nobody,
        }
    }

    /// Converts an error of this rank alone into [`Self::Connect`]; an error that a peer may have caused
    /// stays as it is.
    pub(crate) fn while_connecting(self, backend: &'static str) -> Self {
        match self {
            Self::Unsupported { .. } | Self::Environment(_) | Self::Thread(_) => {
                Self::Connect { backend, reason: self.to_string() }
            }
            other => other,
        }
    }
}

fn ranks(missing: &[usize]) -> String {
    match missing {
        [] => "its peers".to_owned(),
        [one] => format!("rank {one}"),
        many => {
            let list: Vec<_> = many.iter().map(ToString::to_string).collect();
            format!("ranks {}", list.join(", "))
        }
    }
}
