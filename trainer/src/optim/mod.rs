//! Optimizers over flat storage.
//!
//! Dead taps are not updated in a step. The learning rates of steps are recorded, and
//! [`Optimizer::apply_pending_decay`] applies the weight decay of these steps to dead taps before they are
//! read. With a [`LossScaler`], whether a step was skipped is known on the device only: it is recorded there,
//! and read when settling.

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
use torch_ext::DeviceInputs;

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
    /// Ranges of the flat buffers whose parameters are not trained (`optimizer.frozen`).
    frozen: Vec<Range<usize>>,
    clip_grad_norm: Option<f64>,
    loss_scaler: Option<LossScaler>,
    /// Learning rate of the latest step.
    lr: f64,
    /// The learning rate in GPU memory, from which a captured step reads it: 0-d f32. `None` on the CPU.
    lr_on_device: Option<Tensor>,
    /// Norm of the latest step's gradients before clipping: 0-d f32, to which a captured step writes.
    /// `None` without `clip_grad_norm`.
    grad_norm: Option<Tensor>,
    /// Number of steps taken, without those that were skipped: 0-d f32 on the device.
    steps: Tensor,
    /// Fraction of the run that will be done after the next step.
    progress: f64,
    /// Learning rates of the steps whose weight decay has not been applied to dead taps yet.
    pending_decay_lrs: Vec<f64>,
    /// With a loss scaler, for each element of `pending_decay_lrs`, 1 if that step was skipped, else 0: 0-d
    /// f32 on the device.
    skipped: Vec<Tensor>,
}

impl Optimizer {
    /// Creates an optimizer with zero state for the parameters of `flat`.
    ///
    /// # Panics
    /// When `flat` stores dead taps separately, and the optimizer needs whole tensors.
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
            progress: 0.0,
            pending_decay_lrs: Vec::new(),
            skipped: Vec::new(),
        }
    }

    /// From now on, expects gradients of [scaled](Self::scaled) losses, and skips steps whose gradients
    /// overflow. To be called before the first step.
    pub fn scale_losses(&mut self, state: LossScalerState) {
        self.loss_scaler = Some(LossScaler::new(state, self.steps.device()));
    }

    /// Sets the arithmetic of computations that tolerate rounding to bf16, which is Muon's iteration.
    /// Without this call it is in bf16.
    pub fn compute_in(&mut self, arithmetic: Arithmetic) {
        self.rule.compute_in(arithmetic);
    }

    /// From now on, ranks share work that each would otherwise do redundantly on the same gradients, and
    /// steps are collective. To be called before the first step. Collective.
    ///
    /// # Errors
    /// When a peer is gone or memory is short.
    pub fn share_work(&mut self, communicator: &Arc<dyn Communicator>) -> Result<()> {
        self.rule.share_work(communicator)
    }

    /// Sets the fraction of the run that will be done after the next step.
    pub fn set_progress(&mut self, progress: f64) {
        self.progress = progress;
    }

    /// Returns the loss from which backward starts: `loss`, scaled if [`Self::scale_losses`] was called.
    pub fn scaled(&self, loss: Tensor) -> Tensor {
        match &self.loss_scaler {
            Some(scaler) => scaler.scale(&loss),
            None => loss,
        }
    }

    /// Returns the state of the loss scaler, or `None` if there is none. Waits for the device.
    pub fn loss_scaler_state(&self) -> Option<LossScalerState> {
        self.loss_scaler.as_ref().map(LossScaler::state)
    }

    /// Returns the number of steps taken, without those that were skipped. Waits for the device.
    pub fn steps(&self) -> u64 {
        self.steps.double_value(&[]) as u64
    }

    /// Updates the parameters of `flat` from its gradients, which it may modify. Skips the update if
    /// scaled gradients have overflowed.
    ///
    /// # Errors
    /// When libtorch refuses, or, if work is shared, a peer is gone or late.
    pub fn step(&mut self, flat: &Flat, lr: f64) -> Result<()> {
        self.begin_step(lr);
        self.apply(flat)?;
        self.end_step(flat);
        Ok(())
    }

    /// The first part of [`Self::step`]: sets the learning rate.
    pub fn begin_step(&mut self, lr: f64) {
        self.lr = lr;
        if let Some(on_device) = &mut self.lr_on_device {
            // Dead taps must see the same learning rate as live ones, which is rounded to f32.
            self.lr = f64::from(lr as f32);
            let _ = on_device.fill_(lr);
        }
    }

    /// The second part of [`Self::step`], which a CUDA graph can capture: it reads and writes the same
    /// memory each time.
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
        let device_inputs = DeviceInputs {
            lr: self.lr_on_device.as_ref(),
            grad_scale: grad_scale.as_ref(),
            found_inf: found_inf.as_ref(),
        };
        self.steps += 1.0;
        self.rule.step(flat, &StepInputs { lr: self.lr, count: &self.steps, device_inputs })?;
        if let (Some(scaler), Some(found_inf)) = (&mut self.loss_scaler, found_inf) {
            self.steps -= &found_inf;
            scaler.update();
        }
        Ok(())
    }

    /// The last part of [`Self::step`]: records the step for dead taps, and updates the slow weights of
    /// look-ahead.
    pub fn end_step(&mut self, flat: &Flat) {
        if flat.dead.numel() > 0 {
            self.pending_decay_lrs.push(self.lr);
            self.skipped.extend(self.loss_scaler.as_ref().map(LossScaler::found_inf));
        }
        if let Some(lookahead) = &mut self.lookahead {
            lookahead.after_step(flat, self.progress);
        }
    }

    /// Returns the divisor of gradients that limits their norm to `clip_grad_norm`, or `None` without
    /// clipping. It stays on the device, so the host does not wait for the norm.
    ///
    /// Source: PyTorch's `clip_grad_norm_`, of which this is the reciprocal.
    fn grad_scale(&self) -> Option<Tensor> {
        let (norm, most) = (self.grad_norm.as_ref()?, self.clip_grad_norm?);
        Some(((norm + 1e-6) / most).clamp_min(1.0))
    }

    /// Returns the norm of the latest step's gradients in `flat`, before clipping. Waits for the device.
    pub fn grad_norm(&self, flat: &Flat) -> f64 {
        let computed = self.grad_norm.as_ref().map(Tensor::shallow_clone);
        computed.unwrap_or_else(|| flat.grads.norm()).double_value(&[])
    }

    /// Sets the final weights of the run in `flat`, after its last step: the slow weights of look-ahead, if
    /// used.
    pub fn finish(&self, flat: &Flat) {
        if let Some(lookahead) = &self.lookahead {
            lookahead.finish(flat);
        }
    }

    /// Brings the dead taps of `flat` up to date, by applying the weight decay of all steps since the last
    /// call.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn apply_pending_decay(&mut self, flat: &mut Flat) -> Result<()> {
        let skipped = match std::mem::take(&mut self.skipped).as_slice() {
            [] => Vec::new(),
            flags => Vec::<f32>::try_from(Tensor::f_stack(flags, 0)?)?,
        };
        let pending_decay_lrs = std::mem::take(&mut self.pending_decay_lrs).into_iter().enumerate();
        let taken =
            pending_decay_lrs.filter(|(at, _)| skipped.get(*at) != Some(&1.0)).map(|(_, lr)| lr);
        self.rule.replay(&flat.dead, &taken.collect::<Vec<_>>());
        Ok(())
    }

    /// Returns the buffers of the optimizer's state.
    pub fn state(&self) -> Vec<StateBuffer<'_>> {
        let mut state = self.rule.state();
        state.extend(self.lookahead.as_ref().map(Lookahead::state));
        state
    }

    /// Sets the number of steps taken, after the caller has filled the buffers of [`Self::state`].
    pub fn resume_at(&mut self, steps: u64) {
        let _ = self.steps.fill_(steps as f64);
        if let Some(lookahead) = &mut self.lookahead {
            lookahead.resume_at(steps);
        }
    }
}
