//! Where a run is.

use job::dataset::Description;
use serde::{Deserialize, Serialize};

use crate::convolutions::ConvChoice;
use crate::loss_scaler::LossScalerState;
use crate::step::Tally;

/// Where a run is: all that the loop knows besides tensors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Epochs completed.
    pub epochs_completed: usize,
    /// Samples of the epoch in progress that were trained on.
    pub samples_into_epoch: usize,
    /// Optimizer steps taken.
    pub step: u64,
    /// What was counted in the epoch in progress.
    pub epoch_tally: Tally,
    /// Seconds spent in the epoch in progress.
    pub epoch_seconds: f64,
    /// The best accuracy on the test set so far, and after how many epochs.
    pub best_test_accuracy: Option<(f64, usize)>,
    /// Ranks that wrote it. Any number may go on.
    pub world_size: usize,
    /// Hash of the data set.
    pub data_hash: String,
    /// How convolutions are computed, where that was chosen.
    #[serde(default)]
    pub convolutions: Vec<ConvChoice>,
    /// Where the loss scaler is; `None` but with `precision: fp16`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_scaler: Option<LossScalerState>,
    /// What the network knows of the data set; `None` in checkpoints from before it was written.
    #[serde(default)]
    pub data_set: Option<Description>,
}

impl State {
    /// Before the first step.
    pub fn start(world_size: usize, data_hash: String) -> Self {
        Self {
            epochs_completed: 0,
            samples_into_epoch: 0,
            step: 0,
            epoch_tally: Tally::default(),
            epoch_seconds: 0.0,
            best_test_accuracy: None,
            world_size,
            data_hash,
            convolutions: Vec::new(),
            loss_scaler: None,
            data_set: None,
        }
    }

    /// The epoch in progress, from 1.
    pub fn epoch(&self) -> usize {
        self.epochs_completed + 1
    }

    /// The name of its checkpoint's folder: after a whole epoch `epoch-0003`, within one
    /// `step-0001234`.
    pub fn checkpoint_name(&self) -> String {
        if self.samples_into_epoch == 0 {
            format!("epoch-{:04}", self.epochs_completed)
        } else {
            format!("step-{:07}", self.step)
        }
    }
}
