//! How a gradient becomes an update: one fused call over flat storage.
//!
//! Taps that never see a pixel are not stepped. What weight decay does to them is noted down, and
//! made up for by [`Optimizer::settle`] before anybody looks at them. With a [`LossScaler`], whether a
//! step was skipped is known on the device only: that is noted down there, and read when settling.

use job::config::{self, OptimizerName};
use tch::{Kind, Tensor};
use torch_ext::{AdamW, FromDevice, Sgd, SgdStep, replay_adamw, replay_sgd};

use crate::Result;
use crate::flat::Flat;
use crate::loss_scaler::{LossScaler, LossScalerState};

/// An optimizer and its state.
pub struct Optimizer {
    rule: Rule,
    clip_grad_norm: Option<f64>,
    loss_scaler: Option<LossScaler>,
    /// Of the step that was begun last.
    lr: f64,
    /// The same on a GPU, where a captured step reads it: 0-d f32.
    lr_on_device: Option<Tensor>,
    /// Of the last step's gradients before they were clipped, where they are: 0-d f32. In one place, into
    /// which a captured step writes.
    grad_norm: Option<Tensor>,
    /// Steps taken: 0-d f32 on the device.
    steps: Tensor,
    /// With a loss scaler, of each step that dead taps have still to take: 1 where it was skipped, else 0.
    skipped: Vec<Tensor>,
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
        let number = || Tensor::zeros([0i64; 0], (Kind::Float, flat.parameters.device()));
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
        Self {
            rule,
            clip_grad_norm: config.clip_grad_norm,
            loss_scaler: None,
            lr: config.lr,
            lr_on_device: flat.parameters.device().is_cuda().then(number),
            grad_norm: config.clip_grad_norm.map(|_| number()),
            steps: number(),
            skipped: Vec::new(),
        }
    }

    /// From now on, before the first step, expects gradients of [scaled](Self::scaled) losses, and skips
    /// steps whose gradients overflow.
    pub fn scale_losses(&mut self, state: LossScalerState) {
        self.loss_scaler = Some(LossScaler::new(state, self.steps.device()));
    }

    /// What backward begins with: `loss`, scaled where [`Self::scale_losses`] says so.
    pub fn scaled(&self, loss: Tensor) -> Tensor {
        match &self.loss_scaler {
            Some(scaler) => scaler.scale(&loss),
            None => loss,
        }
    }

    /// Where the loss scaler is, where there is one. Waits for the device.
    pub fn loss_scaler(&self) -> Option<LossScalerState> {
        self.loss_scaler.as_ref().map(LossScaler::state)
    }

    /// Steps taken, without those that were skipped. Waits for the device.
    pub fn steps(&self) -> u64 {
        self.steps.double_value(&[]) as u64
    }

    /// Updates the parameters of `flat` from its gradients, which it may change. Skips the step where
    /// scaled gradients have overflowed.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn step(&mut self, flat: &Flat, lr: f64) -> Result<()> {
        self.begin_step(lr);
        self.apply(flat)?;
        self.end_step();
        Ok(())
    }

    /// The first part of [`Self::step`]: says what the learning rate is.
    pub fn begin_step(&mut self, lr: f64) {
        self.lr = lr;
        if let Some(on_device) = &mut self.lr_on_device {
            // Dead taps are to see the rate that live ones see.
            self.lr = f64::from(lr as f32);
            let _ = on_device.fill_(lr);
        }
    }

    /// The second part, which can be captured: it reads and writes the same memory each time.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn apply(&mut self, flat: &Flat) -> Result<()> {
        let Flat { parameters, grads, .. } = flat;
        let found_inf = match &mut self.loss_scaler {
            Some(scaler) => Some(scaler.unscale(grads)?.shallow_clone()),
            None => None,
        };
        if let Some(norm) = &mut self.grad_norm {
            norm.copy_(&grads.norm());
        }
        let grad_scale = self.grad_scale();
        let from_device = FromDevice {
            lr: self.lr_on_device.as_ref(),
            grad_scale: grad_scale.as_ref(),
            found_inf: found_inf.as_ref(),
        };
        self.steps += 1.0;
        let lr = self.lr;
        match &self.rule {
            Rule::AdamW { rule, exp_avg, exp_avg_sq, .. } => AdamW { lr, ..*rule }.step(
                parameters,
                grads,
                exp_avg,
                exp_avg_sq,
                &self.steps,
                from_device,
            )?,
            Rule::Sgd { rule, momentum, .. } => {
                Sgd { lr, ..*rule }.step(parameters, grads, momentum, from_device)?;
            }
        }
        if let (Some(scaler), Some(found_inf)) = (&mut self.loss_scaler, found_inf) {
            self.steps -= &found_inf;
            scaler.update();
        }
        Ok(())
    }

    /// The last part: notes down what dead taps owe.
    pub fn end_step(&mut self) {
        let lr = self.lr;
        match &mut self.rule {
            Rule::AdamW { rule, owed, .. } if rule.weight_decay > 0.0 => {
                owed.push((1.0 - lr * rule.weight_decay) as f32);
            }
            Rule::AdamW { .. } => {}
            Rule::Sgd { rule, owed, .. } => owed.push(SgdStep {
                lr: lr as f32,
                momentum: rule.momentum as f32,
                weight_decay: rule.weight_decay as f32,
                nesterov: rule.nesterov,
            }),
        }
        self.skipped.extend(self.loss_scaler.as_ref().map(LossScaler::found_inf));
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
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn settle(&mut self, flat: &mut Flat) -> Result<()> {
        let skipped = match std::mem::take(&mut self.skipped).as_slice() {
            [] => Vec::new(),
            flags => Vec::<f32>::try_from(Tensor::f_stack(flags, 0)?)?,
        };
        match &mut self.rule {
            Rule::AdamW { owed, .. } => replay_adamw(&mut flat.dead, &taken(owed, &skipped)),
            Rule::Sgd { dead_momentum, owed, .. } => {
                replay_sgd(&mut flat.dead, dead_momentum, &taken(owed, &skipped));
            }
        }
        Ok(())
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
        let _ = self.steps.fill_(steps as f64);
    }
}

/// Empties `owed` and gives those of its steps that were taken. `skipped`: a flag each, or none at all.
fn taken<T>(owed: &mut Vec<T>, skipped: &[f32]) -> Vec<T> {
    let numbered = std::mem::take(owed).into_iter().enumerate();
    numbered.filter(|(at, _)| skipped.get(*at) != Some(&1.0)).map(|(_, step)| step).collect()
}
