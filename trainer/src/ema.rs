//! An exponential moving average of the weights and of batch norm's running statistics.
//!
//! The average does not influence training; it is evaluated and saved beside the weights. It lies in flat
//! buffers like the weights, so that an update is one fused call per buffer. Dead taps
//! ([`job::network::Taps`]) are averaged in the same way; only weight decay changes them.
//!
//! Source: Polyak and Juditsky, Acceleration of Stochastic Approximation by Averaging, 1992; the rule is
//! that of PyTorch's `get_ema_multi_avg_fn` in an `AveragedModel` with `use_buffers=True`.

use job::config::Train;
use tch::Tensor;

use crate::Result;
use crate::flat::{Flat, Storage};
use crate::optim::Optimizer;
use crate::replica::Replica;

/// An exponential moving average of weights and running statistics.
pub struct Ema {
    decay: f64,
    every: u64,
    storage: Storage,
}

impl Ema {
    /// Starts an average with the weights of `flat`, or returns `None` without `train.ema_decay`.
    pub fn new(train: &Train, flat: &Flat) -> Option<Self> {
        let decay = train.ema_decay?;
        Some(Self { decay, every: train.ema_every, storage: flat.storage().copy() })
    }

    /// Returns the averages, laid out like the storage of the weights.
    pub fn storage(&self) -> &Storage {
        &self.storage
    }

    /// Resets the average to the weights of `flat`.
    pub fn restart(&mut self, flat: &Flat) {
        self.storage.copy_from(&flat.storage());
    }

    /// Updates the average with the weights after step `step` of the run, from 1, if `step` is a multiple of
    /// `train.ema_every`. The first update sets the average to the weights.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn after_step(
        &mut self,
        step: u64,
        flat: &mut Flat,
        optimizer: &mut Optimizer,
    ) -> Result<()> {
        if !step.is_multiple_of(self.every) {
            return Ok(());
        }
        if flat.dead.numel() > 0 {
            optimizer.apply_pending_decay(flat)?;
        }
        let weight = if step == self.every { 1.0 } else { 1.0 - self.decay };
        let towards = |average: &mut Tensor, now: &Tensor| average.f_lerp_(now, weight).map(drop);
        tch::no_grad(|| {
            let Storage { parameters, buffers, dead } = &mut self.storage;
            towards(parameters, &flat.parameters)?;
            towards(buffers, &flat.buffers)?;
            towards(dead, &flat.dead)
        })?;
        Ok(())
    }

    /// Runs `body` with a replica whose weights and running statistics are replaced by the averages, then
    /// restores them. Running statistics that `body` changes become the averages'.
    ///
    /// # Errors
    /// Those of `body`.
    pub fn in_place_of_weights<T>(
        &mut self,
        replica: &mut Replica,
        body: impl FnOnce(&mut Replica) -> Result<T>,
    ) -> Result<T> {
        let Flat { parameters, buffers, .. } = &replica.flat;
        let kept = [parameters, buffers].map(Tensor::copy);
        let put = |flat: &mut Flat, parameters: &Tensor, buffers: &Tensor| {
            tch::no_grad(|| {
                flat.parameters.copy_(parameters);
                flat.buffers.copy_(buffers);
            });
        };
        put(&mut replica.flat, &self.storage.parameters, &self.storage.buffers);
        let result = body(replica);
        self.storage.buffers.copy_(&replica.flat.buffers);
        let [parameters, buffers] = &kept;
        put(&mut replica.flat, parameters, buffers);
        result
    }
}
