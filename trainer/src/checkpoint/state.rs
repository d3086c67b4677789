//! Where a run is.

use job::config;
use job::dataset::Description;
use serde::{Deserialize, Serialize};

use crate::convolutions::ConvChoice;
use crate::loss_scaler::LossScalerState;
use crate::tally::Tally;

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
    /// What was counted since the last record of a step.
    #[serde(default)]
    pub record_tally: Tally,
    /// Seconds spent in the epoch in progress.
    pub epoch_seconds: f64,
    /// The best accuracy on the test set so far, and after how many epochs.
    pub best_test_accuracy: Option<(f64, usize)>,
    /// After how many steps that was; `None` in checkpoints from before it was written.
    #[serde(default)]
    pub best_step: Option<u64>,
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
            record_tally: Tally::default(),
            epoch_seconds: 0.0,
            best_test_accuracy: None,
            best_step: None,
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

    /// Whether nothing is left to train.
    pub fn is_complete(&self, train: &config::Train) -> bool {
        self.epochs_completed >= train.epochs || self.is_at_max_steps(train)
    }

    /// Whether `train.max_steps` is reached.
    pub fn is_at_max_steps(&self, train: &config::Train) -> bool {
        train.max_steps.is_some_and(|max_steps| self.step >= max_steps)
    }

    /// Whether these are the weights whose evaluation was the best so far.
    pub fn is_best(&self) -> bool {
        match (self.best_step, self.best_test_accuracy) {
            (Some(step), _) => step == self.step,
            // A checkpoint from before that was written.
            (None, Some((_, epoch))) => {
                self.samples_into_epoch == 0 && epoch == self.epochs_completed
            }
            (None, None) => false,
        }
    }

    /// Orders checkpoints of one run by age. One that was saved when asked to stop at the end of an epoch has
    /// the step of the one that the epoch ends with.
    pub fn age(&self) -> (u64, usize) {
        (self.step, self.epochs_completed)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn after(epochs_completed: usize, samples_into_epoch: usize, step: u64) -> State {
        let start = State::start(1, String::new());
        State { epochs_completed, samples_into_epoch, step, ..start }
    }

    #[test]
    fn of_two_checkpoints_of_one_step_that_of_the_whole_epoch_is_newer() {
        let stopped = after(0, 160, 10);
        let complete = after(1, 0, 10);
        assert!(stopped.age() < complete.age() && complete.age() < after(1, 16, 11).age());
        assert_eq!(stopped.checkpoint_name(), "step-0000010");
        assert_eq!(complete.checkpoint_name(), "epoch-0001");
    }

    #[test]
    fn the_best_is_the_one_right_after_its_evaluation() {
        let best = |best_step, state| State { best_step: Some(best_step), ..state }.is_best();
        assert!(best(20, after(2, 0, 20)) && best(15, after(1, 80, 15)));
        // The rest of an epoch within which the best was found.
        assert!(!best(15, after(2, 0, 20)));
        assert!(!after(0, 0, 0).is_best());
        let before = |state| State { best_test_accuracy: Some((0.5, 2)), ..state }.is_best();
        assert!(before(after(2, 0, 20)) && !before(after(2, 16, 21)) && !before(after(3, 0, 30)));
    }
}
