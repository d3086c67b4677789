//! The interface of optimizers.

use std::sync::Arc;

use comm::Communicator;
use tch::Tensor;
use torch_ext::DeviceInputs;

use crate::Result;
use crate::arithmetic::Arithmetic;
use crate::flat::Flat;

/// A buffer of optimizer state, such as a momentum, in the layout of the parameters.
pub struct StateBuffer<'a> {
    /// PyTorch's name of this state.
    pub name: &'static str,
    /// `[live]` f32: the state of parameters without dead taps.
    pub live: &'a Tensor,
    /// `[dead]` f32: the state of dead taps; `None` if it is always zero.
    pub dead: Option<&'a Tensor>,
}

/// The inputs of a step besides parameters and gradients.
pub(super) struct StepInputs<'a> {
    /// The learning rate. On a GPU, the one in `device_inputs` is used instead.
    pub lr: f64,
    /// The number of this step, from 1: 0-d f32 on the device.
    pub count: &'a Tensor,
    /// The inputs that are read from the device's memory.
    pub device_inputs: DeviceInputs<'a>,
}

impl StepInputs<'_> {
    /// Returns `tensor`, f32, times the learning rate and `factor`.
    pub fn times_lr(&self, tensor: &Tensor, factor: f64) -> Tensor {
        match self.device_inputs.lr {
            Some(lr) => tensor * (lr * factor),
            None => tensor * (self.lr * factor),
        }
    }

    /// Calls `body` with these inputs, but with `factor` times the learning rate.
    pub fn at_rate<T>(&self, factor: f64, body: impl FnOnce(&StepInputs<'_>) -> T) -> T {
        let on_device = self.device_inputs.lr.map(|lr| lr * factor);
        let device_inputs = DeviceInputs { lr: on_device.as_ref(), ..self.device_inputs };
        body(&StepInputs { lr: self.lr * factor, count: self.count, device_inputs })
    }

    /// Returns the gradients of `flat` divided by `grad_scale`: `[live]` f32. For rules whose kernel does
    /// not do so.
    pub fn scaled_grads(&self, flat: &Flat) -> Tensor {
        match self.device_inputs.grad_scale {
            Some(scale) => &flat.grads / scale,
            None => flat.grads.shallow_clone(),
        }
    }
}

/// An update rule and its state.
pub(super) trait Rule {
    /// Updates the parameters of `flat` from its gradients. Collective where [`Self::share_work`] was
    /// called.
    ///
    /// # Errors
    /// When libtorch refuses, or a peer is gone or late.
    fn step(&mut self, flat: &Flat, inputs: &StepInputs<'_>) -> Result<()>;

    /// Applies to dead taps, `[dead]` f32, the updates of steps with gradient zero and these learning
    /// rates. A rule that cannot do so needs [whole tensors](job::config::Optimizer::needs_whole_tensors),
    /// which have no dead taps.
    fn replay(&mut self, dead: &Tensor, lrs: &[f64]) {
        let _ = lrs;
        assert_eq!(dead.numel(), 0, "this optimizer needs whole tensors");
    }

    /// Sets the arithmetic of computations that tolerate rounding to bf16.
    fn compute_in(&mut self, arithmetic: Arithmetic) {
        let _ = arithmetic;
    }

    /// From now on, ranks share work that each would otherwise do redundantly. Collective.
    ///
    /// # Errors
    /// When a peer is gone or memory is short.
    fn share_work(&mut self, communicator: &Arc<dyn Communicator>) -> Result<()> {
        let _ = communicator;
        Ok(())
    }

    /// Returns the buffers of the rule's state.
    fn state(&self) -> Vec<StateBuffer<'_>>;
}
