//! How long and in what portions.

use serde::{Deserialize, Serialize};

/// How long and in what portions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Train {
    /// Passes over the training set.
    pub epochs: usize,
    /// Images that a rank puts through the network at once.
    pub batch_size_per_rank: usize,
    /// Such microbatches a step, whose gradients are added up before ranks reduce them.
    pub grad_accum_steps: usize,
    /// Whether batch norm takes its statistics over the images of all ranks.
    pub sync_batch_norm: bool,
    /// Of initial weights, order of samples, augmentation and synthetic images.
    pub seed: u64,
    /// Stop after so many steps, evaluate and save; `null`: after the last epoch.
    pub max_steps: Option<u64>,
}

impl Default for Train {
    fn default() -> Self {
        Self {
            epochs: 20,
            batch_size_per_rank: 64,
            grad_accum_steps: 1,
            sync_batch_norm: false,
            seed: 0,
            max_steps: None,
        }
    }
}

impl Train {
    /// Images that `world_size` ranks together take a step.
    pub const fn global_batch_size(&self, world_size: usize) -> usize {
        self.batch_size_per_rank * self.grad_accum_steps * world_size
    }
}
