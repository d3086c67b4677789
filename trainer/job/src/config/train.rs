//! How long and in what portions.

use serde::{Deserialize, Serialize};

use super::validate::{Invalid, at_least_one, below_one, within};

/// How long and in what portions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
    /// The part of each training target that is spread evenly over all classes: 0 to below 1.
    pub label_smoothing: f64,
    /// How much of the weights' moving average stays at an update of it: 0 to below 1; `null`: there is
    /// no average.
    pub ema_decay: Option<f64>,
    /// Steps between updates of the average.
    pub ema_every: u64,
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
            label_smoothing: 0.0,
            ema_decay: None,
            ema_every: 1,
            seed: 0,
            max_steps: None,
        }
    }
}

impl Train {
    /// Checks ranges.
    pub(super) fn validate(&self) -> Result<(), Invalid> {
        at_least_one("train.epochs", self.epochs as u64)?;
        within("train.batch_size_per_rank", self.batch_size_per_rank, 1..=65536)?;
        within("train.grad_accum_steps", self.grad_accum_steps, 1..=65536)?;
        below_one("train.label_smoothing", self.label_smoothing)?;
        below_one("train.ema_decay", self.ema_decay.unwrap_or(0.0))?;
        at_least_one("train.ema_every", self.ema_every)?;
        if self.ema_decay.is_none() && self.ema_every != 1 {
            let problem = "goes with `train.ema_decay`, which is null: there is no average";
            return Err(Invalid::new("train.ema_every", problem));
        }
        at_least_one("train.max_steps", self.max_steps.unwrap_or(1))
    }

    /// Images that `world_size` ranks together take a step.
    pub const fn global_batch_size(&self, world_size: usize) -> usize {
        self.batch_size_per_rank * self.grad_accum_steps * world_size
    }
}
