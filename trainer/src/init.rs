//! Initial weights: PyTorch's own default for each layer.

use job::network::Role;
use tch::{Kind, Tensor};

use crate::flat::Flat;

/// Fills `flat` with initial weights that depend on `seed` only, not on the device.
///
/// Convolution and linear weights: uniform in `±1/sqrt(fan_in)`, which is what
/// `kaiming_uniform_(a=sqrt(5))` comes to; linear biases the same. Batch norm: scale 1, shift 0,
/// running mean 0, running variance 1.
///
/// Source: `reset_parameters` of `torch.nn.Conv2d`, `Linear` and `BatchNorm2d`.
pub fn initialize(flat: &mut Flat, seed: u64) {
    tch::manual_seed(seed as i64);
    tch::no_grad(|| {
        for (spec, view) in flat.views() {
            let mut view = view.shallow_clone();
            match spec.role {
                Role::Weight { fan_in } | Role::Bias { fan_in } => {
                    let bound = 1.0 / (fan_in as f64).sqrt();
                    let shape = view.size();
                    let values = Tensor::empty(shape, (Kind::Float, tch::Device::Cpu));
                    view.copy_(&values.uniform(-bound, bound));
                }
                Role::NormWeight | Role::RunningVar => {
                    let _ = view.fill_(1.0);
                }
                Role::NormBias | Role::RunningMean | Role::BatchesTracked => {
                    let _ = view.fill_(0.0);
                }
            }
        }
    });
    flat.batches_tracked = 0;
}
