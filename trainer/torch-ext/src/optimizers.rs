//! Optimizer steps, each one call over slices of flat tensors.

use std::ffi::c_char;
use std::ptr::null;

use tch::Tensor;

use crate::{CTensor, Result, check, pointers, ptr};

unsafe extern "C" {
    fn torch_ext_fused_adamw(
        count: usize,
        parameters: *const *const CTensor,
        grads: *const *const CTensor,
        exp_avg: *const *const CTensor,
        exp_avg_sq: *const *const CTensor,
        step: *const CTensor,
        lr_on_device: *const CTensor,
        grad_scale: *const CTensor,
        found_inf: *const CTensor,
        lr: f64,
        beta1: f64,
        beta2: f64,
        weight_decay: f64,
        eps: f64,
    ) -> *mut c_char;
    fn torch_ext_fused_sgd(
        count: usize,
        parameters: *const *const CTensor,
        grads: *const *const CTensor,
        momentum: *const *const CTensor,
        lr_on_device: *const CTensor,
        grad_scale: *const CTensor,
        found_inf: *const CTensor,
        lr: f64,
        momentum_factor: f64,
        weight_decay: f64,
        nesterov: bool,
    ) -> *mut c_char;
    fn torch_ext_unscale(
        grads: *mut CTensor,
        found_inf: *mut CTensor,
        inv_scale: *const CTensor,
    ) -> *mut c_char;
    fn torch_ext_norms(
        count: usize,
        tensors: *const *const CTensor,
        norms: *mut CTensor,
    ) -> *mut c_char;
    fn torch_ext_newton_schulz(
        matrix: *const CTensor,
        out: *mut CTensor,
        steps: i64,
        is_bf16: bool,
    ) -> *mut c_char;
}

fn optional(tensor: Option<&Tensor>) -> *const CTensor {
    tensor.map_or(null(), |tensor| ptr(tensor).cast_const())
}

/// Inputs of a step that are read from the device when the step is executed: 0-d f32 tensors.
#[derive(Debug, Clone, Copy, Default)]
pub struct DeviceInputs<'a> {
    /// Learning rate, instead of the one of the optimizer.
    pub lr: Option<&'a Tensor>,
    /// Factor by which the gradients are divided first.
    pub grad_scale: Option<&'a Tensor>,
    /// If it holds 1, the step changes nothing.
    pub found_inf: Option<&'a Tensor>,
}

/// Multiplies `grads`, `[n]` f32, by `inv_scale`, 0-d f32, in place. If any gradient is not finite,
/// `found_inf`, 0-d f32, becomes 1; otherwise it is left unchanged.
///
/// # Errors
/// When sizes, dtypes or devices do not match.
pub fn unscale(grads: &Tensor, found_inf: &Tensor, inv_scale: &Tensor) -> Result<()> {
    // SAFETY: all are live tensors for the length of the call.
    unsafe { check(torch_ext_unscale(ptr(grads), ptr(found_inf), ptr(inv_scale))) }
}

/// Writes the 2-norm of each of `tensors` to `norms`, `[tensors]` f32.
///
/// # Errors
/// When sizes, dtypes or devices do not match.
pub fn norms(tensors: &[Tensor], norms: &Tensor) -> Result<()> {
    let pointers = pointers(tensors);
    // SAFETY: all are live tensors for the length of the call.
    unsafe { check(torch_ext_norms(tensors.len(), pointers.as_ptr(), ptr(norms))) }
}

/// Applies `steps` Newton-Schulz iterations to `matrix`, in bf16 or else in fp32, and writes the result to
/// `out`: approximately the orthogonal matrix nearest to `matrix`. `matrix`: `[rows, columns]` f32; `out` has
/// the same shape.
///
/// # Errors
/// When sizes, dtypes or devices do not match.
///
/// Source: Jordan et al., Muon, 2024; coefficients and operations are those of PyTorch's
/// `torch.optim.Muon`.
pub fn newton_schulz(matrix: &Tensor, out: &Tensor, steps: i64, is_bf16: bool) -> Result<()> {
    // SAFETY: both are live tensors for the length of the call.
    unsafe { check(torch_ext_newton_schulz(ptr(matrix), ptr(out), steps, is_bf16)) }
}

/// Hyperparameters of one AdamW step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// Learning rate.
    pub lr: f64,
    /// Decay rates of the two moments.
    pub betas: [f64; 2],
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Added to the denominator.
    pub eps: f64,
}

impl AdamW {
    /// Does one step over slices of flat tensors, `[n]` f32 each, in place. `step` is a 0-d f32 tensor with
    /// the number of this step, counted from 1.
    ///
    /// # Errors
    /// When sizes, dtypes or devices do not match.
    ///
    /// # Panics
    /// When the lists differ in length.
    ///
    /// Source: Loshchilov and Hutter, Decoupled Weight Decay Regularization, ICLR 2019; the kernel
    /// is PyTorch's `_fused_adamw_`.
    pub fn step(
        &self,
        parameters: &[Tensor],
        grads: &[Tensor],
        exp_avg: &[Tensor],
        exp_avg_sq: &[Tensor],
        step: &Tensor,
        DeviceInputs { lr: lr_on_device, grad_scale, found_inf }: DeviceInputs<'_>,
    ) -> Result<()> {
        let Self { lr, betas: [beta1, beta2], weight_decay, eps } = *self;
        let count = parameters.len();
        assert!([grads, exp_avg, exp_avg_sq].iter().all(|tensors| tensors.len() == count));
        let lists = [parameters, grads, exp_avg, exp_avg_sq].map(pointers);
        // SAFETY: each list has `count` tensors, and all are live for the length of the call.
        unsafe {
            check(torch_ext_fused_adamw(
                count,
                lists[0].as_ptr(),
                lists[1].as_ptr(),
                lists[2].as_ptr(),
                lists[3].as_ptr(),
                ptr(step),
                optional(lr_on_device),
                optional(grad_scale),
                optional(found_inf),
                lr,
                beta1,
                beta2,
                weight_decay,
                eps,
            ))
        }
    }
}

/// Hyperparameters of one SGD step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sgd {
    /// Learning rate.
    pub lr: f64,
    /// Momentum; 0 for none.
    pub momentum: f64,
    /// Coupled weight decay: this factor times the parameter is added to the gradient.
    pub weight_decay: f64,
    /// Whether momentum is Nesterov's.
    pub nesterov: bool,
}

impl Sgd {
    /// Does one step over slices of flat tensors, `[n]` f32 each, in place. `momentum` holds the momentum
    /// buffers, which start at 0; they are not read if the momentum factor is 0.
    ///
    /// # Errors
    /// When sizes, dtypes or devices do not match.
    ///
    /// # Panics
    /// When the lists differ in length.
    ///
    /// Source: PyTorch's `_fused_sgd_`, without dampening.
    pub fn step(
        &self,
        parameters: &[Tensor],
        grads: &[Tensor],
        momentum: &[Tensor],
        DeviceInputs { lr: lr_on_device, grad_scale, found_inf }: DeviceInputs<'_>,
    ) -> Result<()> {
        let count = parameters.len();
        assert_eq!(grads.len(), count);
        assert!(self.momentum == 0.0 || momentum.len() == count);
        let lists = [parameters, grads, momentum].map(pointers);
        // SAFETY: each list that is read has `count` tensors, and all are live for the length of the call.
        unsafe {
            check(torch_ext_fused_sgd(
                count,
                lists[0].as_ptr(),
                lists[1].as_ptr(),
                lists[2].as_ptr(),
                optional(lr_on_device),
                optional(grad_scale),
                optional(found_inf),
                self.lr,
                self.momentum,
                self.weight_decay,
                self.nesterov,
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    /// Muon's iteration, computed in f64.
    fn in_f64(matrix: &Tensor, steps: i64) -> Tensor {
        let (rows, columns) = matrix.size2().unwrap();
        let wide = if rows > columns { matrix.tr() } else { matrix.shallow_clone() };
        let mut x = &wide / wide.norm();
        for _ in 0..steps {
            let gram = x.matmul(&x.tr());
            let polynomial: Tensor = -4.7750 * &gram + 2.0315 * gram.matmul(&gram);
            x = 3.4445 * &x + polynomial.matmul(&x);
        }
        if rows > columns { x.tr() } else { x }
    }

    #[test]
    fn newton_schulz_rounds_to_what_it_is_told_to_compute_in() {
        for size in [[24, 60], [60, 24]] {
            let numbers = Tensor::arange(24 * 60, (Kind::Double, Device::Cpu)) * 1.7;
            let matrix = numbers.square().sin().view(size);
            let wanted = in_f64(&matrix, 5);
            let error = |is_bf16| {
                let out = Tensor::zeros(size, (Kind::Float, Device::Cpu));
                newton_schulz(&matrix.to_kind(Kind::Float), &out, 5, is_bf16).unwrap();
                ((out - &wanted).norm() / wanted.norm()).double_value(&[])
            };
            let (fp32, bf16) = (error(false), error(true));
            assert!(fp32 < 1e-4 && (1e-3..0.1).contains(&bf16), "{fp32} {bf16}");
        }
    }
}
