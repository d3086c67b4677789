//! What is kept of a run.

use serde::{Deserialize, Serialize};

/// When the run is saved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Checkpoint {
    /// Epochs between checkpoints; the last epoch is always saved.
    pub every_epochs: usize,
    /// How many of the newest to keep; the best is kept besides.
    pub keep: usize,
    /// How long a run that is done waits for a disk that does not take its last checkpoint.
    pub retry_minutes: u64,
}

impl Default for Checkpoint {
    fn default() -> Self {
        Self { every_epochs: 1, keep: 3, retry_minutes: 60 }
    }
}

/// What is recorded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Metrics {
    /// Steps between `step` records.
    pub log_every: u64,
    /// Whether records are written for TensorBoard too, in `tensorboard/`.
    pub tensorboard: bool,
}

impl Default for Metrics {
    fn default() -> Self {
        Self { log_every: 10, tensorboard: false }
    }
}
