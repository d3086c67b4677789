//! What an optimizer is.

use std::sync::Arc;

use comm::Communicator;
use tch::Tensor;
use torch_ext::FromDevice;

use crate::Result;
use crate::arithmetic::Arithmetic;
use crate::flat::Flat;

/// One kind of state, laid out like the parameters.
pub struct StateBuffer<'a> {
    /// PyTorch's name.
    pub name: &'static str,
    /// `[live]` f32.
    pub live: &'a Tensor,
    /// `[dead]` f32; `None` where it is zero for ever.
    pub dead: Option<&'a Tensor>,
}

/// What a step depends on besides parameters and gradients.
pub(super) struct StepInputs<'a> {
    /// The learning rate; on a GPU, `from_device` has the one that counts.
    pub lr: f64,
    /// This step's number, from 1: 0-d f32 on the device.
    pub count: &'a Tensor,
    /// What is known on the device only.
    pub from_device: FromDevice<'a>,
}

impl StepInputs<'_> {
    /// `tensor`, f32, times the learning rate and `factor`.
    pub fn times_lr(&self, tensor: &Tensor, factor: f64) -> Tensor {
        match self.from_device.lr {
            Some(lr) => tensor * (lr * factor),
            None => tensor * (self.lr * factor),
        }
    }

    /// The same step at `factor` times the learning rate. `body` is given it.
    pub fn at_rate<T>(&self, factor: f64, body: impl FnOnce(&StepInputs<'_>) -> T) -> T {
        let on_device = self.from_device.lr.map(|lr| lr * factor);
        let from_device = FromDevice { lr: on_device.as_ref(), ..self.from_device };
        body(&StepInputs { lr: self.lr * factor, count: self.count, from_device })
    }

    /// The gradients of `flat`, scaled: `[live]` f32. For rules without a kernel that scales them.
    pub fn scaled_grads(&self, flat: &Flat) -> Tensor {
        match self.from_device.grad_scale {
            Some(scale) => &flat.grads / scale,
            None => flat.grads.shallow_clone(),
        }
    }
}

/// How gradients become updates, and what is remembered for that.
pub(super) trait Rule {
    /// Updates the parameters of `flat` from its gradients. Collective where [`Self::share_work`] was
    /// called.
    ///
    /// # Errors
    /// When libtorch refuses, or a peer is gone or late.
    fn step(&mut self, flat: &Flat, inputs: &StepInputs<'_>) -> Result<()>;

    /// Does to the dead taps, `[dead]` f32, what steps with these learning rates would have done. A rule
    /// for which a gradient of zero means more than that needs
    /// [whole tensors](job::config::Optimizer::needs_whole_tensors), and has none.
    fn replay(&mut self, dead: &Tensor, lrs: &[f64]) {
        let _ = lrs;
        assert_eq!(dead.numel(), 0, "this optimizer needs whole tensors");
    }

    /// Computes what bears rounding to bf16 in `arithmetic`.
    fn compute_in(&mut self, arithmetic: Arithmetic) {
        let _ = arithmetic;
    }

    /// Lets ranks share work that all of them would do. Collective.
    ///
    /// # Errors
    /// When a peer is gone or memory is short.
    fn share_work(&mut self, communicator: &Arc<dyn Communicator>) -> Result<()> {
        let _ = communicator;
        Ok(())
    }

    /// What is remembered.
    fn state(&self) -> Vec<StateBuffer<'_>>;
}
