//! Stochastic gradient descent.

use tch::Tensor;
use torch_ext::{SgdStep, replay_sgd};

use super::groups::Group;
use super::rule::{Rule, StateBuffer, StepInputs};
use crate::Result;
use crate::flat::Flat;

/// SGD over some of the parameters.
pub(super) struct Sgd {
    momentum: f64,
    nesterov: bool,
    groups: Vec<Group>,
    /// Momentum buffer: `[live]` f32. Without momentum, this and `dead_buffer` are empty.
    buffer: Tensor,
    dead_buffer: Tensor,
}

impl Sgd {
    /// Creates SGD with zero state for the parameters of `groups`.
    pub fn new(momentum: f64, nesterov: bool, groups: Vec<Group>, flat: &Flat) -> Self {
        let zeros = |like: &Tensor| if momentum > 0.0 { like.zeros_like() } else { Tensor::new() };
        let (buffer, dead_buffer) = (zeros(&flat.parameters), zeros(&flat.dead));
        Self { momentum, nesterov, groups, buffer, dead_buffer }
    }

    fn has_momentum(&self) -> bool {
        self.momentum > 0.0
    }
}

impl Rule for Sgd {
    fn step(&mut self, flat: &Flat, inputs: &StepInputs<'_>) -> Result<()> {
        for group in &self.groups {
            let rule = |lr| torch_ext::Sgd {
                lr,
                momentum: self.momentum,
                weight_decay: group.factors.weight_decay,
                nesterov: self.nesterov,
            };
            let buffer = if self.has_momentum() { group.live(&self.buffer) } else { Vec::new() };
            let (parameters, grads) = (group.live(&flat.parameters), group.live(&flat.grads));
            inputs.at_rate(group.factors.lr, |StepInputs { lr, device_inputs, .. }| {
                rule(*lr).step(&parameters, &grads, &buffer, *device_inputs)
            })?;
        }
        Ok(())
    }

    fn replay(&mut self, dead: &Tensor, lrs: &[f64]) {
        for group in &self.groups {
            let steps = lrs.iter().map(|lr| SgdStep {
                lr: (lr * group.factors.lr) as f32,
                momentum: self.momentum as f32,
                weight_decay: group.factors.weight_decay as f32,
                nesterov: self.nesterov,
            });
            let steps: Vec<_> = steps.collect();
            let mut parts = group.dead(dead);
            let mut buffers = match self.has_momentum() {
                true => group.dead(&self.dead_buffer),
                false => parts.iter().map(|_| Tensor::new()).collect(),
            };
            for (part, buffer) in parts.iter_mut().zip(&mut buffers) {
                replay_sgd(part, buffer, &steps);
            }
        }
    }

    fn state(&self) -> Vec<StateBuffer<'_>> {
        if !self.has_momentum() {
            return Vec::new();
        }
        let (name, dead) = ("momentum_buffer", Some(&self.dead_buffer));
        vec![StateBuffer { name, live: &self.buffer, dead }]
    }
}
