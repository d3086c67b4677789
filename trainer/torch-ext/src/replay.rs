//! Deferred optimizer steps for parameters whose gradient is always zero.
//!
//! Only weight decay (and momentum) changes such parameters, each element independently and by the same rule.
//! So the hyperparameters of each step are recorded, and the steps are replayed when the parameters are
//! needed: one pass over memory for all steps, with exactly the operations of the skipped steps.

use tch::{Device, Kind, Tensor};

/// Number of elements per block: small enough to stay in the L1 cache while all steps are replayed.
const BLOCK: usize = 2048;

/// Multiplies `parameters`, `[n]` f32 on the CPU, by each factor in turn. With factors `1 - lr *
/// weight_decay` this is AdamW's decoupled weight decay.
///
/// # Panics
/// When the tensor is not f32, not on the CPU or not contiguous.
pub fn replay_adamw(parameters: &mut Tensor, factors: &[f32]) {
    for block in elements(parameters).chunks_mut(BLOCK) {
        for factor in factors {
            block.iter_mut().for_each(|value| *value *= factor);
        }
    }
}

/// Hyperparameters of one SGD step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SgdStep {
    /// Learning rate.
    pub lr: f32,
    /// Momentum; 0 for none.
    pub momentum: f32,
    /// Coupled weight decay: this factor times the parameter is added to the gradient.
    pub weight_decay: f32,
    /// Whether momentum is Nesterov's.
    pub nesterov: bool,
}

/// Does SGD steps with a gradient of zero on `parameters` and, if the first step has momentum, on the
/// momentum buffer `momentum` of the same length: `[n]` f32 on the CPU.
///
/// # Panics
/// When a tensor is not f32, not on the CPU or not contiguous.
pub fn replay_sgd(parameters: &mut Tensor, momentum: &mut Tensor, steps: &[SgdStep]) {
    let has_momentum = steps.first().is_some_and(|step| step.momentum != 0.0);
    let parameters = elements(parameters).chunks_mut(BLOCK);
    if !has_momentum {
        for block in parameters {
            for SgdStep { lr, weight_decay, .. } in steps {
                block.iter_mut().for_each(|value| *value -= lr * (weight_decay * *value));
            }
        }
        return;
    }
    for (block, buffer) in parameters.zip(elements(momentum).chunks_mut(BLOCK)) {
        for step in steps {
            for (value, buffer) in block.iter_mut().zip(buffer.iter_mut()) {
                let decay = step.weight_decay * *value;
                *buffer = step.momentum * *buffer + decay;
                let update = if step.nesterov { decay + step.momentum * *buffer } else { *buffer };
                *value -= step.lr * update;
            }
        }
    }
}

fn elements(tensor: &mut Tensor) -> &mut [f32] {
    assert_eq!((tensor.kind(), tensor.device()), (Kind::Float, Device::Cpu));
    assert!(tensor.is_contiguous());
    if tensor.numel() == 0 {
        return &mut [];
    }
    // SAFETY: a contiguous f32 tensor on the CPU is `numel()` consecutive f32 values; it is borrowed mutably
    // for as long as the slice, and no other thread computes on it.
    unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast(), tensor.numel()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AdamW, DeviceInputs, Sgd};

    const STEPS: usize = 20;

    fn parameters() -> Tensor {
        Tensor::arange(5000, (Kind::Float, Device::Cpu)) / 2500.0 - 1.0
    }

    fn furthest(one: &Tensor, other: &Tensor) -> f64 {
        (one - other).abs().max().double_value(&[])
    }

    #[test]
    fn a_replay_equals_adamw_steps_with_a_gradient_of_zero() {
        let (stepped, mut replayed) = (parameters(), parameters());
        let (grads, exp_avg, exp_avg_sq) =
            (stepped.zeros_like(), stepped.zeros_like(), stepped.zeros_like());
        let rule = AdamW { lr: 0.01, betas: [0.9, 0.999], weight_decay: 0.1, eps: 1e-8 };
        for step in 1..=STEPS {
            let count = Tensor::from(step as f32);
            let [parameters, grads, exp_avg, exp_avg_sq] =
                [&stepped, &grads, &exp_avg, &exp_avg_sq].map(|tensor| [tensor.shallow_clone()]);
            rule.step(&parameters, &grads, &exp_avg, &exp_avg_sq, &count, DeviceInputs::default())
                .unwrap();
        }
        replay_adamw(&mut replayed, &[(1.0 - rule.lr * rule.weight_decay) as f32; STEPS]);
        assert_eq!(furthest(&stepped, &replayed), 0.0);
    }

    #[test]
    fn a_replay_equals_sgd_steps_with_a_gradient_of_zero() {
        for (momentum, nesterov) in [(0.0, false), (0.9, false), (0.9, true)] {
            let (stepped, mut replayed) = (parameters(), parameters());
            let (grads, buffer) = (stepped.zeros_like(), stepped.zeros_like());
            let mut replayed_buffer = buffer.zeros_like();
            let rule = Sgd { lr: 0.1, momentum, weight_decay: 0.05, nesterov };
            let steps: Vec<_> = (0..STEPS)
                .map(|_| {
                    let [parameters, grads, buffer] =
                        [&stepped, &grads, &buffer].map(|tensor| [tensor.shallow_clone()]);
                    rule.step(&parameters, &grads, &buffer, DeviceInputs::default()).unwrap();
                    SgdStep {
                        lr: rule.lr as f32,
                        momentum: momentum as f32,
                        weight_decay: rule.weight_decay as f32,
                        nesterov,
                    }
                })
                .collect();
            replay_sgd(&mut replayed, &mut replayed_buffer, &steps);
            // libtorch's vectorized code uses fused multiply-adds, which round once instead of twice.
            assert!(furthest(&stepped, &replayed) < 1e-6, "momentum {momentum}, {nesterov}");
            assert!(furthest(&buffer, &replayed_buffer) < 1e-6, "momentum {momentum}, {nesterov}");
        }
    }
}
