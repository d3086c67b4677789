//! AdamW.

use tch::Tensor;
use torch_ext::replay_adamw;

use super::groups::Group;
use super::rule::{Rule, StateBuffer, StepInputs};
use crate::Result;
use crate::flat::Flat;

/// AdamW over some of the parameters.
pub(super) struct AdamW {
    betas: [f64; 2],
    eps: f64,
    groups: Vec<Group>,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
}

impl AdamW {
    /// Creates AdamW with zero state for the parameters of `groups`.
    pub fn new(config: &job::config::Optimizer, groups: Vec<Group>, flat: &Flat) -> Self {
        let zeros = || flat.parameters.zeros_like();
        Self {
            betas: config.betas(),
            eps: config.eps(),
            groups,
            exp_avg: zeros(),
            exp_avg_sq: zeros(),
        }
    }
}

impl Rule for AdamW {
    fn step(&mut self, flat: &Flat, inputs: &StepInputs<'_>) -> Result<()> {
        for group in &self.groups {
            let rule = |lr| torch_ext::AdamW {
                lr,
                betas: self.betas,
                weight_decay: group.factors.weight_decay,
                eps: self.eps,
            };
            let [parameters, grads, exp_avg, exp_avg_sq] =
                [&flat.parameters, &flat.grads, &self.exp_avg, &self.exp_avg_sq]
                    .map(|buffer| group.live(buffer));
            inputs.at_rate(group.factors.lr, |StepInputs { lr, count, device_inputs }| {
                rule(*lr).step(&parameters, &grads, &exp_avg, &exp_avg_sq, count, *device_inputs)
            })?;
        }
        Ok(())
    }

    fn replay(&mut self, dead: &Tensor, lrs: &[f64]) {
        decay(&self.groups, dead, lrs);
    }

    fn state(&self) -> Vec<StateBuffer<'_>> {
        vec![
            StateBuffer { name: "exp_avg", live: &self.exp_avg, dead: None },
            StateBuffer { name: "exp_avg_sq", live: &self.exp_avg_sq, dead: None },
        ]
    }
}

/// Applies to dead taps, `[dead]` f32, the decoupled weight decay of `groups` in steps with learning rates
/// `lrs`.
pub(super) fn decay(groups: &[Group], dead: &Tensor, lrs: &[f64]) {
    for group in groups.iter().filter(|group| group.factors.weight_decay > 0.0) {
        let factors = lrs.iter().map(|lr| {
            let lr = lr * group.factors.lr;
            (1.0 - lr * group.factors.weight_decay) as f32
        });
        let factors: Vec<f32> = factors.collect();
        group.dead(dead).iter_mut().for_each(|part| replay_adamw(part, &factors));
    }
}
