//! LAMB: layer-wise adaptive moments.

use tch::Tensor;

use super::layerwise::Tensors;
use super::rule::{Rule, StateBuffer, StepInputs};
use crate::Result;
use crate::flat::Flat;

/// LAMB over all parameters.
pub(super) struct Lamb {
    betas: [f64; 2],
    eps: f64,
    tensors: Tensors,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
}

impl Lamb {
    /// Creates LAMB with zero state.
    pub fn new(config: &job::config::Optimizer, flat: &Flat) -> Self {
        Self {
            betas: config.betas(),
            eps: config.eps(),
            tensors: Tensors::of(config, flat),
            exp_avg: flat.parameters.zeros_like(),
            exp_avg_sq: flat.parameters.zeros_like(),
        }
    }
}

impl Rule for Lamb {
    /// Updates each tensor with weights w and Adam's update r: `u = r + weight_decay w`, `w = w - lr |w| /
    /// |u| u`.
    ///
    /// Source: You et al., Large Batch Optimization for Deep Learning, ICLR 2020, algorithm 2, with the
    /// identity for its function of the norm.
    fn step(&mut self, flat: &Flat, inputs: &StepInputs<'_>) -> Result<()> {
        let Self { betas: [beta1, beta2], tensors, exp_avg, exp_avg_sq, .. } = self;
        let (grads, mut weights) = (inputs.scaled_grads(flat), flat.parameters.shallow_clone());
        let _ = exp_avg.lerp_(&grads, 1.0 - *beta1);
        let _ = exp_avg_sq.lerp_(&grads.square(), 1.0 - *beta2);
        // 1 - beta^count, without cancellation.
        let correction = |beta: f64| -(inputs.count * beta.ln()).expm1();
        let deviation = (&*exp_avg_sq / correction(*beta2)).sqrt() + self.eps;
        let mut update = (&*exp_avg / correction(*beta1)) / deviation;
        let _ = update.addcmul_(&weights, &tensors.per_element(&tensors.weight_decay));
        let ratios = tensors.trust_ratios(&tensors.norms(&weights)?, &tensors.norms(&update)?);
        let rates = inputs.times_lr(&(ratios * &tensors.lr), 1.0);
        let _ = weights.g_sub_(&(update * tensors.per_element(&rates)));
        Ok(())
    }

    fn state(&self) -> Vec<StateBuffer<'_>> {
        vec![
            StateBuffer { name: "exp_avg", live: &self.exp_avg, dead: None },
            StateBuffer { name: "exp_avg_sq", live: &self.exp_avg_sq, dead: None },
        ]
    }
}
