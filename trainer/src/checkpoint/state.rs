//! The state of a run besides tensors, `state.json` of a checkpoint.

use job::config;
use job::dataset::Description;
use serde::{Deserialize, Serialize};

use crate::convolutions::ConvChoice;
use crate::loss_scaler::LossScalerState;
use crate::tally::Tally;

/// The position of a run and everything else that the training loop must keep besides tensors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Number of completed epochs.
    pub epochs_completed: usize,
    /// Number of samples of the epoch in progress that were trained on, over all ranks.
    pub samples_into_epoch: usize,
    /// Number of steps taken, including those that loss scaling skipped.
    pub step: u64,
    /// Training loss and accuracy of the epoch in progress.
    pub epoch_tally: Tally,
    /// Training loss and accuracy since the last step record.
    #[serde(default)]
    pub record_tally: Tally,
    /// Seconds spent on steps of the epoch in progress.
    pub epoch_seconds: f64,
    /// The best test accuracy so far, and the epoch of its evaluation, from 1.
    pub best_test_accuracy: Option<(f64, usize)>,
    /// The number of steps at the best evaluation; `None` without an evaluation, and in checkpoints written
    /// before this field existed.
    #[serde(default)]
    pub best_step: Option<u64>,
    /// The world size of the run. A run may be resumed with another one.
    pub world_size: usize,
    /// BLAKE3 hash of the data set, in hexadecimal.
    pub data_hash: String,
    /// The methods by which convolutions are computed on the CPU; empty if none were chosen.
    #[serde(default)]
    pub convolutions: Vec<ConvChoice>,
    /// The state of the loss scaler; `None` without `precision: fp16`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_scaler: Option<LossScalerState>,
    /// What the network must know of the data set; `None` in checkpoints written before this field existed.
    #[serde(default)]
    pub data_set: Option<Description>,
}

impl State {
    /// Returns the state before the first step.
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

    /// Returns the number of the epoch in progress, from 1.
    pub fn epoch(&self) -> usize {
        self.epochs_completed + 1
    }

    /// Returns whether nothing is left to train.
    pub fn is_complete(&self, train: &config::Train) -> bool {
        self.epochs_completed >= train.epochs || self.is_at_max_steps(train)
    }

    /// Returns whether `train.max_steps` is reached.
    pub fn is_at_max_steps(&self, train: &config::Train) -> bool {
        train.max_steps.is_some_and(|max_steps| self.step >= max_steps)
    }

    /// Returns whether the weights of this state are those whose evaluation was the best so far.
    pub fn is_best(&self) -> bool {
        match (self.best_step, self.best_test_accuracy) {
            (Some(step), _) => step == self.step,
            // A checkpoint written before `best_step` existed.
            (None, Some((_, epoch))) => {
                self.samples_into_epoch == 0 && epoch == self.epochs_completed
            }
            (None, None) => false,
        }
    }

    /// Returns a key that orders the checkpoints of a run by age, the oldest first. The number of epochs
    /// breaks ties: a checkpoint that was saved on a request to stop after the last step of an epoch has
    /// the same step as that of the completed epoch.
    pub fn age(&self) -> (u64, usize) {
        (self.step, self.epochs_completed)
    }

    /// Returns the name of this state's checkpoint folder: `epoch-0003` after a whole epoch, `step-0001234`
    /// within one.
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
        // The end of an epoch within which the best evaluation took place.
        assert!(!best(15, after(2, 0, 20)));
        assert!(!after(0, 0, 0).is_best());
        let before = |state| State { best_test_accuracy: Some((0.5, 2)), ..state }.is_best();
        assert!(before(after(2, 0, 20)) && !before(after(2, 16, 21)) && !before(after(3, 0, 30)));
    }
}
