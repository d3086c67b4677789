//! Look-ahead: slow weights that the optimizer's weights run ahead of.

use tch::Tensor;

use super::rule::StateBuffer;
use crate::flat::Flat;

/// Slow weights, and when they meet the others.
pub(super) struct Lookahead {
    every: u64,
    decay: f64,
    power: f64,
    /// `[live]` f32.
    slow: Tensor,
}

impl Lookahead {
    /// That start where the weights of `flat` are; `None` where there are none.
    pub fn new(config: &job::config::Optimizer, flat: &Flat) -> Option<Self> {
        Some(Self {
            every: config.lookahead_steps?,
            decay: config.lookahead_decay(),
            power: config.lookahead_power(),
            slow: flat.parameters.copy(),
        })
    }

    /// After step `step`, from 1, with which `progress` of the run is done: lets both meet where it is
    /// time.
    ///
    /// Source: Zhang et al., Lookahead Optimizer, NeurIPS 2019, algorithm 1, where `1 - decay` is alpha;
    /// with a power it is Jordan's, 94 % on CIFAR-10 in 3.29 seconds, 2024.
    pub fn after_step(&mut self, flat: &Flat, step: u64, progress: f64) {
        if step.is_multiple_of(self.every) {
            let stays = self.decay * progress.powf(self.power);
            let _ = self.slow.lerp_(&flat.parameters, 1.0 - stays);
            self.finish(flat);
        }
    }

    /// Gives the weights of `flat` the values of the slow ones.
    pub fn finish(&self, flat: &Flat) {
        flat.parameters.shallow_clone().copy_(&self.slow);
    }

    pub fn state(&self) -> StateBuffer<'_> {
        StateBuffer { name: "slow_weights", live: &self.slow, dead: None }
    }
}
