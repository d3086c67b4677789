//! The sections `checkpoint` and `metrics`.

use serde::{Deserialize, Serialize};

/// When checkpoints are saved, and how many are kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Checkpoint {
    /// Epochs between checkpoints; the last epoch is always saved.
    pub every_epochs: usize,
    /// Number of newest checkpoints to keep; the best one is kept in addition.
    pub keep: usize,
    /// Minutes that a finished run goes on trying to save its last checkpoint if the disk is full.
    pub retry_minutes: u64,
}

impl Default for Checkpoint {
    fn default() -> Self {
        Self { every_epochs: 1, keep: 3, retry_minutes: 60 }
    }
}

/// What metrics are recorded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Metrics {
    /// Steps between `step` records.
    pub log_every: u64,
    /// Whether records are also written for TensorBoard, to `tensorboard/`.
    pub tensorboard: bool,
}

impl Default for Metrics {
    fn default() -> Self {
        Self { log_every: 10, tensorboard: false }
    }
}
