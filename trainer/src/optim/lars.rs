//! LARS: layer-wise adaptive rate scaling.

use tch::Tensor;

use super::layerwise::Tensors;
use super::rule::{Rule, StateBuffer, StepInputs};
use crate::Result;
use crate::flat::Flat;

/// LARS over all parameters.
pub(super) struct Lars {
    momentum: f64,
    trust_coefficient: f64,
    tensors: Tensors,
    buffer: Tensor,
}

impl Lars {
    /// Creates LARS with zero state.
    pub fn new(config: &job::config::Optimizer, flat: &Flat) -> Self {
        Self {
            momentum: config.momentum(),
            trust_coefficient: config.trust_coefficient(),
            tensors: Tensors::of(config, flat),
            buffer: flat.parameters.zeros_like(),
        }
    }
}

impl Rule for Lars {
    /// Updates each tensor with weights w, gradients g, momentum m, weight decay b and trust coefficient t:
    /// `v = m v + lr t |w| / (|g| + b |w|) (g + b w)`, `w = w - v`.
    ///
    /// Source: You, Gitman and Ginsburg, Large Batch Training of Convolutional Networks, 2017,
    /// algorithm 1.
    fn step(&mut self, flat: &Flat, inputs: &StepInputs<'_>) -> Result<()> {
        let Self { tensors, buffer, .. } = self;
        let (grads, mut weights) = (inputs.scaled_grads(flat), flat.parameters.shallow_clone());
        let (grad_norms, weight_norms) = (tensors.norms(&grads)?, tensors.norms(&weights)?);
        let trusted = &weight_norms * self.trust_coefficient;
        let against = grad_norms + &tensors.weight_decay * weight_norms;
        let ratios = tensors.trust_ratios(&trusted, &against);
        let rates = inputs.times_lr(&(ratios * &tensors.lr), 1.0);
        let decays = tensors.per_element(&(&rates * &tensors.weight_decay));
        let _ = buffer.g_mul_scalar_(self.momentum);
        let _ = buffer.addcmul_(&grads, &tensors.per_element(&rates));
        let _ = buffer.addcmul_(&weights, &decays);
        let _ = weights.g_sub_(buffer);
        Ok(())
    }

    fn state(&self) -> Vec<StateBuffer<'_>> {
        vec![StateBuffer { name: "momentum_buffer", live: &self.buffer, dead: None }]
    }
}
