//! Look-ahead: slow weights, which periodically move towards the optimizer's (fast) weights and replace them.

use tch::Tensor;

use super::rule::StateBuffer;
use crate::flat::Flat;

/// The slow weights and their update rule.
pub(super) struct Lookahead {
    every: u64,
    decay: f64,
    power: f64,
    /// Number of steps taken. None is ever skipped: configurations that scale losses have no look-ahead.
    steps: u64,
    /// `[live]` f32: the slow weights.
    slow: Tensor,
}

impl Lookahead {
    /// Creates slow weights that start as the weights of `flat`; `None` without `optimizer.lookahead_steps`.
    pub fn new(config: &job::config::Optimizer, flat: &Flat) -> Option<Self> {
        Some(Self {
            every: config.lookahead_steps?,
            decay: config.lookahead_decay(),
            power: config.lookahead_power(),
            steps: 0,
            slow: flat.parameters.copy(),
        })
    }

    /// Counts a step, and if their number is a multiple of `optimizer.lookahead_steps`, moves the slow weights
    /// towards the weights of `flat` and copies them back. `progress`: fraction of the run that is done after
    /// the step.
    ///
    /// Source: Zhang et al., Lookahead Optimizer, NeurIPS 2019, algorithm 1, where `1 - decay` is alpha;
    /// with a power it is Jordan's, 94 % on CIFAR-10 in 3.29 seconds, 2024.
    pub fn after_step(&mut self, flat: &Flat, progress: f64) {
        self.steps += 1;
        if self.steps.is_multiple_of(self.every) {
            let stays = self.decay * progress.powf(self.power);
            let _ = self.slow.lerp_(&flat.parameters, 1.0 - stays);
            self.finish(flat);
        }
    }

    /// Sets the number of steps taken.
    pub fn resume_at(&mut self, steps: u64) {
        self.steps = steps;
    }

    /// Copies the slow weights to the weights of `flat`.
    pub fn finish(&self, flat: &Flat) {
        flat.parameters.shallow_clone().copy_(&self.slow);
    }

    pub fn state(&self) -> StateBuffer<'_> {
        StateBuffer { name: "slow_weights", live: &self.slow, dead: None }
    }
}
