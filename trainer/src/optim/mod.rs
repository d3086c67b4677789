//! How a gradient becomes an update, over flat storage.
//!
//! Taps that never see a pixel are not stepped. What weight decay does to them is noted down, and
//! made up for by [`Optimizer::settle`] before anybody looks at them. With a [`LossScaler`], whether a
//! step was skipped is known on the device only: that is noted down there, and read when settling.

mod adamw;
mod groups;
mod lamb;
mod lars;
mod layerwise;
mod lookahead;
mod muon;
mod rule;
mod sgd;

use std::ops::Range;
use std::sync::Arc;

use comm::Communicator;
use job::config::{self, OptimizerName};
use tch::{Kind, Tensor};
use torch_ext::FromDevice;

use crate::Result;
use crate::arithmetic::Arithmetic;
use crate::flat::Flat;
use crate::loss_scaler::{LossScaler, LossScalerState};

pub use rule::StateBuffer;

use groups::Group;
use lookahead::Lookahead;
use rule::{Rule, StepInputs};

/// An optimizer and its state.
pub struct Optimizer {
    rule: Box<dyn Rule>,
    lookahead: Option<Lookahead>,
    /// Ranges of the flat gradients that are not trained (`optimizer.frozen`).
    frozen: Vec<Range<usize>>,
    clip_grad_norm: Option<f64>,
    loss_scaler: Option<LossScaler>,
    /// The learning rate of the step that was begun last.
    lr: f64,
    /// The same in a GPU's memory, where a captured step reads it: 0-d f32.
    lr_on_device: Option<Tensor>,
    /// The norm of the last step's gradients before they were clipped, with `clip_grad_norm`: 0-d f32. A captured step
    /// writes it to this memory.
    grad_norm: Option<Tensor>,
    /// Steps taken, without those that were skipped: 0-d f32 on the device.
    steps: Tensor,
    /// Steps tried, skipped ones included.
    tried: u64,
    /// How much of the run is done after the next step, a fraction.
    progress: f64,
    /// The learning rates of steps that dead taps have still to take.
    owed: Vec<f64>,
    /// With a loss scaler, of each of those: 1 where it was skipped, else 0.
    skipped: Vec<Tensor>,
}

impl Optimizer {
    /// With zero state, for the parameters of `flat`.
    ///
    /// # Panics
    /// When `flat` has dead taps, and the optimizer needs whole tensors.
    pub fn new(config: &config::Optimizer, flat: &Flat) -> Self {
        let whole = flat.dead.numel() == 0;
        assert!(whole || !config.needs_whole_tensors(), "dead taps must not be left out");
        let all = || Group::all(config, config.weight_decay, flat, |_| true);
        let rule: Box<dyn Rule> = match config.name {
            OptimizerName::Adamw => Box::new(adamw::AdamW::new(config, all(), flat)),
            OptimizerName::Sgd => {
                Box::new(sgd::Sgd::new(config.momentum(), config.nesterov(), all(), flat))
            }
            OptimizerName::Lars => Box::new(lars::Lars::new(config, flat)),
            OptimizerName::Lamb => Box::new(lamb::Lamb::new(config, flat)),
            OptimizerName::Muon => Box::new(muon::Muon::new(config, flat)),
        };
        let number = || Tensor::zeros([0i64; 0], (Kind::Float, flat.parameters.device()));
        let frozen = flat.extents().into_iter().filter(|extent| config.freezes(extent.spec));
        Self {
            rule,
            lookahead: Lookahead::new(config, flat),
            frozen: frozen.map(|extent| extent.live).collect(),
            clip_grad_norm: config.clip_grad_norm,
            loss_scaler: None,
            lr: config.lr,
            lr_on_device: flat.parameters.device().is_cuda().then(number),
            grad_norm: config.clip_grad_norm.map(|_| number()),
            steps: number(),
            tried: 0,
            progress: 0.0,
            owed: Vec::new(),
            skipped: Vec::new(),
        }
    }

    /// From now on, before the first step, expects gradients of [scaled](Self::scaled) losses, and skips
    /// steps whose gradients overflow.
    pub fn scale_losses(&mut self, state: LossScalerState) {
        self.loss_scaler = Some(LossScaler::new(state, self.steps.device()));
    }

    /// From now on, computes what bears rounding to bf16 in `arithmetic`: Muon's iteration, which is in bf16
    /// without this call.
    pub fn compute_in(&mut self, arithmetic: Arithmetic) {
        self.rule.compute_in(arithmetic);
    }

    /// From now on, before the first step, ranks share work that each would do: their gradients are the
    /// same, and steps are collective. Collective.
    ///
    /// # Errors
    /// When a peer is gone or memory is short.
    pub fn share_work(&mut self, communicator: &Arc<dyn Communicator>) -> Result<()> {
        self.rule.share_work(communicator)
    }

    /// Says how much of the run will be done after the next step, a fraction.
    pub fn set_progress(&mut self, progress: f64) {
        self.progress = progress;
    }

    /// What backward begins with: `loss`, scaled where [`Self::scale_losses`] says so.
    pub fn scaled(&self, loss: Tensor) -> Tensor {
        match &self.loss_scaler {
            Some(scaler) => scaler.scale(&loss),
            None => loss,
        }
    }

    /// Where the loss scaler is, where there is one. Waits for the device.
    pub fn loss_scaler_state(&self) -> Option<LossScalerState> {
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
    /// When libtorch refuses, or, where work is shared, a peer is gone or late.
    pub fn step(&mut self, flat: &Flat, lr: f64) -> Result<()> {
        self.begin_step(lr);
        self.apply(flat)?;
        self.end_step(flat);
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
    /// Those of [`Self::step`].
    pub fn apply(&mut self, flat: &Flat) -> Result<()> {
        for mut grads in groups::slices(&flat.grads, &self.frozen) {
            let _ = grads.zero_();
        }
        let found_inf = match &mut self.loss_scaler {
            Some(scaler) => Some(scaler.unscale(&flat.grads)?.shallow_clone()),
            None => None,
        };
        if let Some(norm) = &mut self.grad_norm {
            norm.copy_(&flat.grads.norm());
        }
        let grad_scale = self.grad_scale();
        let from_device = FromDevice {
            lr: self.lr_on_device.as_ref(),
            grad_scale: grad_scale.as_ref(),
            found_inf: found_inf.as_ref(),
        };
        self.steps += 1.0;
        self.rule.step(flat, &StepInputs { lr: self.lr, count: &self.steps, from_device })?;
        if let (Some(scaler), Some(found_inf)) = (&mut self.loss_scaler, found_inf) {
            self.steps -= &found_inf;
            scaler.update();
        }
        Ok(())
    }

    /// The last part: notes down what dead taps owe, and lets slow weights follow.
    pub fn end_step(&mut self, flat: &Flat) {
        self.tried += 1;
        if flat.dead.numel() > 0 {
            self.owed.push(self.lr);
            self.skipped.extend(self.loss_scaler.as_ref().map(LossScaler::found_inf));
        }
        if let Some(lookahead) = &mut self.lookahead {
            lookahead.after_step(flat, self.tried, self.progress);
        }
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

    /// Gives `flat` the weights that the run ends with, after its last step.
    pub fn finish(&self, flat: &Flat) {
        if let Some(lookahead) = &self.lookahead {
            lookahead.finish(flat);
        }
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
        let owed = std::mem::take(&mut self.owed).into_iter().enumerate();
        let taken = owed.filter(|(at, _)| skipped.get(*at) != Some(&1.0)).map(|(_, lr)| lr);
        self.rule.replay(&flat.dead, &taken.collect::<Vec<_>>());
        Ok(())
    }

    /// The state.
    pub fn state(&self) -> Vec<StateBuffer<'_>> {
        let mut state = self.rule.state();
        state.extend(self.lookahead.as_ref().map(Lookahead::state));
        state
    }

    /// Says how many steps the state, which the caller has filled, comes from.
    pub fn resume_at(&mut self, steps: u64) {
        let _ = self.steps.fill_(steps as f64);
        self.tried = steps;
    }
}
