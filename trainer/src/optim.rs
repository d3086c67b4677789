//! How a gradient becomes an update: one fused call over flat storage.

use job::config::{self, OptimizerName};
use tch::{Kind, Tensor};
use torch_ext::{AdamW, Sgd};

use crate::Result;
use crate::flat::Flat;

/// An optimizer and its state.
pub struct Optimizer {
    rule: Rule,
    /// Steps taken.
    steps: u64,
}

enum Rule {
    AdamW { rule: AdamW, exp_avg: Tensor, exp_avg_sq: Tensor },
    Sgd { rule: Sgd, momentum: Tensor },
}

impl Optimizer {
    /// With zero state, for the parameters of `flat`.
    pub fn new(config: &config::Optimizer, flat: &Flat) -> Self {
        let zeros = || flat.parameters.detach().zeros_like();
        let rule = match config.name {
            OptimizerName::Adamw => Rule::AdamW {
                rule: AdamW {
                    lr: config.lr,
                    betas: config.betas.unwrap_or([0.9, 0.999]),
                    weight_decay: config.weight_decay,
                    eps: config.eps.unwrap_or(1e-8),
                },
                exp_avg: zeros(),
                exp_avg_sq: zeros(),
            },
            OptimizerName::Sgd => {
                let momentum = config.momentum.unwrap_or(0.0);
                Rule::Sgd {
                    rule: Sgd {
                        lr: config.lr,
                        momentum,
                        weight_decay: config.weight_decay,
                        nesterov: config.nesterov.unwrap_or(false),
                    },
                    momentum: if momentum > 0.0 { zeros() } else { Tensor::new() },
                }
            }
        };
        Self { rule, steps: 0 }
    }

    /// Steps taken.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Updates the parameters of `flat` from its gradients.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn step(&mut self, flat: &Flat, lr: f64) -> Result<()> {
        let Flat { parameters, grads, .. } = flat;
        match &self.rule {
            Rule::AdamW { rule, exp_avg, exp_avg_sq } => {
                let step = Tensor::full(
                    [0i64; 0],
                    (self.steps + 1) as f64,
                    (Kind::Float, parameters.device()),
                );
                AdamW { lr, ..*rule }.step(parameters, grads, exp_avg, exp_avg_sq, &step)?;
            }
            Rule::Sgd { rule, momentum } => {
                Sgd { lr, ..*rule }.step(parameters, grads, momentum, self.steps == 0)?;
            }
        }
        self.steps += 1;
        Ok(())
    }

    /// The state, each `[parameters]` f32, by PyTorch's names.
    pub fn state(&self) -> Vec<(&'static str, &Tensor)> {
        match &self.rule {
            Rule::AdamW { exp_avg, exp_avg_sq, .. } => {
                vec![("exp_avg", exp_avg), ("exp_avg_sq", exp_avg_sq)]
            }
            Rule::Sgd { rule, momentum } if rule.momentum > 0.0 => {
                vec![("momentum_buffer", momentum)]
            }
            Rule::Sgd { .. } => Vec::new(),
        }
    }

    /// Says how many steps the state, which the caller has filled, comes from.
    pub fn resume_at(&mut self, steps: u64) {
        self.steps = steps;
    }
}
