//! An exponential moving average of the weights and of batch norm's running statistics.
//!
//! It follows training and does not influence it; it is evaluated and saved beside the weights. Each
//! of its buffers is one, so an update is a fused call for each. Dead taps
//! ([`job::network::Taps`]) take the same average, of what weight decay makes of them.
//!
//! Source: Polyak and Juditsky, Acceleration of Stochastic Approximation by Averaging, 1992; the rule is
//! that of PyTorch's `get_ema_multi_avg_fn` in an `AveragedModel` with `use_buffers=True`.

use job::config::Train;
use tch::Tensor;

use crate::Result;
use crate::flat::{Flat, Storage};
use crate::optim::Optimizer;
use crate::replica::Replica;

/// An average of weights.
pub struct Ema {
    decay: f64,
    every: u64,
    storage: Storage,
}

impl Ema {
    /// Starts with the weights of `flat`; `None` where the configuration has no average.
    pub fn new(train: &Train, flat: &Flat) -> Option<Self> {
        let decay = train.ema_decay?;
        Some(Self { decay, every: train.ema_every, storage: flat.storage().copy() })
    }

    /// The averages, laid out like what they are of.
    pub fn storage(&self) -> &Storage {
        &self.storage
    }

    /// Starts anew with the weights of `flat`.
    pub fn restart(&mut self, flat: &Flat) {
        self.storage.copy_from(&flat.storage());
    }

    /// Takes in the weights after step `step` of the run, which counts from 1, where it is time for it.
    /// The first time, the average becomes the weights.
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
            optimizer.settle(flat)?;
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

    /// Runs `body` with a replica that has the averages instead of its weights and running statistics,
    /// and keeps what it makes of the statistics.
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
