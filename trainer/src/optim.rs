//! How a gradient becomes an update: one fused call over flat storage.
//!
//! Taps that never see a pixel are not stepped. What weight decay does to them is noted down, and
//! made up for by [`Optimizer::settle`] before anybody looks at them.

use job::config::{self, OptimizerName};
use tch::{Kind, Tensor};
use torch_ext::{AdamW, Sgd, SgdStep, replay_adamw, replay_sgd};

use crate::Result;
use crate::flat::Flat;

/// An optimizer and its state.
pub struct Optimizer {
    rule: Rule,
    clip_grad_norm: Option<f64>,
    /// Of the last step's gradients before they were clipped, where they are: 0-d f32.
    grad_norm: Option<Tensor>,
    /// Steps taken.
    steps: u64,
}

enum Rule {
    AdamW {
        rule: AdamW,
        exp_avg: Tensor,
        exp_avg_sq: Tensor,
        /// What dead taps are still to be multiplied by.
        owed: Vec<f32>,
    },
    Sgd {
        rule: Sgd,
        momentum: Tensor,
        /// Of dead taps.
        dead_momentum: Tensor,
        /// Steps that dead taps have still to take.
        owed: Vec<SgdStep>,
    },
}

/// One kind of state, laid out like the parameters.
pub struct StateBuffer<'a> {
    /// PyTorch's name.
    pub name: &'static str,
    /// `[live]` f32.
    pub live: &'a Tensor,
    /// `[dead]` f32; `None` where it is zero for ever.
    pub dead: Option<&'a Tensor>,
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
                owed: Vec::new(),
            },
            OptimizerName::Sgd => {
                let momentum = config.momentum.unwrap_or(0.0);
                let has_momentum = momentum > 0.0;
                let none = Tensor::new;
                Rule::Sgd {
                    rule: Sgd {
                        lr: config.lr,
                        momentum,
                        weight_decay: config.weight_decay,
                        nesterov: config.nesterov.unwrap_or(false),
                    },
                    momentum: if has_momentum { zeros() } else { none() },
                    dead_momentum: if has_momentum { flat.dead.zeros_like() } else { none() },
                    owed: Vec::new(),
                }
            }
        };
        Self { rule, clip_grad_norm: config.clip_grad_norm, grad_norm: None, steps: 0 }
    }

    /// Steps taken.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Updates the parameters of `flat` from its gradients, which it may change.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn step(&mut self, flat: &Flat, lr: f64) -> Result<()> {
        let Flat { parameters, grads, .. } = flat;
        let is_first = self.steps == 0;
        self.grad_norm = self.clip_grad_norm.map(|_| grads.norm());
        let scale = self.grad_scale();
        match &mut self.rule {
            Rule::AdamW { rule, exp_avg, exp_avg_sq, owed } => {
                let count = (self.steps + 1) as f64;
                let step = Tensor::full([0i64; 0], count, (Kind::Float, parameters.device()));
                AdamW { lr, ..*rule }.step(
                    parameters,
                    grads,
                    exp_avg,
                    exp_avg_sq,
                    &step,
                    scale.as_ref(),
                )?;
                if rule.weight_decay > 0.0 {
                    owed.push((1.0 - lr * rule.weight_decay) as f32);
                }
            }
            Rule::Sgd { rule, momentum, owed, .. } => {
                Sgd { lr, ..*rule }.step(parameters, grads, momentum, scale.as_ref(), is_first)?;
                owed.push(SgdStep {
                    lr: lr as f32,
                    momentum: rule.momentum as f32,
                    weight_decay: rule.weight_decay as f32,
                    nesterov: rule.nesterov,
                    is_first,
                });
            }
        }
        self.steps += 1;
        Ok(())
    }

    /// What gradients are divided by so that their norm is at most `clip_grad_norm`. Stays on the
    /// device: nobody waits for the norm.
    ///
    /// Source: PyTorch's `clip_grad_norm_`, of which this is the reciprocal.
    fn grad_scale(&self) -> Option<Tensor> {
        let (norm, most) = (self.grad_norm.as_ref()?, self.clip_grad_norm?);
        Some(((norm + 1e-6) / most).clamp_min(1.0))
    }

    /// The norm of the gradients that the last step took from `flat`, before they were clipped. Waits
    /// for the device.
    pub fn grad_norm(&self, flat: &Flat) -> f64 {
        let computed = self.grad_norm.as_ref().map(Tensor::shallow_clone);
        computed.unwrap_or_else(|| flat.grads.norm()).double_value(&[])
    }

    /// Lets the dead taps of `flat` take the steps that they have not taken yet.
    pub fn settle(&mut self, flat: &mut Flat) {
        match &mut self.rule {
            Rule::AdamW { owed, .. } => replay_adamw(&mut flat.dead, &std::mem::take(owed)),
            Rule::Sgd { dead_momentum, owed, .. } => {
                replay_sgd(&mut flat.dead, dead_momentum, &std::mem::take(owed));
            }
        }
    }

    /// The state.
    pub fn state(&self) -> Vec<StateBuffer<'_>> {
        match &self.rule {
            Rule::AdamW { exp_avg, exp_avg_sq, .. } => vec![
                StateBuffer { name: "exp_avg", live: exp_avg, dead: None },
                StateBuffer { name: "exp_avg_sq", live: exp_avg_sq, dead: None },
            ],
            Rule::Sgd { rule, momentum, dead_momentum, .. } if rule.momentum > 0.0 => {
                let name = "momentum_buffer";
                vec![StateBuffer { name, live: momentum, dead: Some(dead_momentum) }]
            }
            Rule::Sgd { .. } => Vec::new(),
        }
    }

    /// Says how many steps the state, which the caller has filled, comes from.
    pub fn resume_at(&mut self, steps: u64) {
        self.steps = steps;
    }
}
