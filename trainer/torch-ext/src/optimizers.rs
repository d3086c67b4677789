//! Optimizer steps, each one call over flat tensors.

use std::ffi::c_char;
use std::ptr::null;

use tch::Tensor;

use crate::{CTensor, Result, check, ptr};

unsafe extern "C" {
    fn torch_ext_fused_adamw(
        parameters: *mut CTensor,
        grads: *const CTensor,
        exp_avg: *mut CTensor,
        exp_avg_sq: *mut CTensor,
        step: *mut CTensor,
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
        parameters: *mut CTensor,
        grads: *const CTensor,
        momentum: *mut CTensor,
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
}

fn optional(tensor: Option<&Tensor>) -> *const CTensor {
    tensor.map_or(null(), |tensor| ptr(tensor).cast_const())
}

/// What a step reads on the device, when it is executed: 0-d f32 each.
#[derive(Debug, Clone, Copy, Default)]
pub struct FromDevice<'a> {
    /// Instead of the rule's learning rate.
    pub lr: Option<&'a Tensor>,
    /// Divides the gradients first.
    pub grad_scale: Option<&'a Tensor>,
    /// Where it is 1, nothing changes.
    pub found_inf: Option<&'a Tensor>,
}

/// Multiplies `grads`, `[n]` f32, by `inv_scale`, 0-d f32, in place. Where one of them is not finite,
/// `found_inf`, 0-d f32, becomes 1; elsewhere it stays.
///
/// # Errors
/// When the tensors do not fit together.
pub fn unscale(grads: &Tensor, found_inf: &Tensor, inv_scale: &Tensor) -> Result<()> {
    // SAFETY: all are live tensors for the length of the call.
    unsafe { check(torch_ext_unscale(ptr(grads), ptr(found_inf), ptr(inv_scale))) }
}

/// The numbers of one AdamW step.
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
    /// One step over flat `[n]` f32 tensors, in place. `step` is a 0-d f32 tensor that counts from
    /// 1: it holds this step's number already.
    ///
    /// # Errors
    /// When the tensors do not fit together.
    ///
    /// Source: Loshchilov and Hutter, Decoupled Weight Decay Regularization, ICLR 2019; the kernel
    /// is PyTorch's `_fused_adamw_`.
    pub fn step(
        &self,
        parameters: &Tensor,
        grads: &Tensor,
        exp_avg: &Tensor,
        exp_avg_sq: &Tensor,
        step: &Tensor,
        FromDevice { lr: lr_on_device, grad_scale, found_inf }: FromDevice<'_>,
    ) -> Result<()> {
        let Self { lr, betas: [beta1, beta2], weight_decay, eps } = *self;
        // SAFETY: all are live tensors for the length of the call.
        unsafe {
            check(torch_ext_fused_adamw(
                ptr(parameters),
                ptr(grads),
                ptr(exp_avg),
                ptr(exp_avg_sq),
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

/// The numbers of one SGD step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sgd {
    /// Learning rate.
    pub lr: f64,
    /// Momentum; 0 for none.
    pub momentum: f64,
    /// Added to the gradient, times the parameter.
    pub weight_decay: f64,
    /// Nesterov's form of momentum.
    pub nesterov: bool,
}

impl Sgd {
    /// One step over flat `[n]` f32 tensors, in place. `momentum` starts at 0, and is not
    /// read where the factor is 0.
    ///
    /// # Errors
    /// When the tensors do not fit together.
    ///
    /// Source: PyTorch's `_fused_sgd_`, without dampening.
    pub fn step(
        &self,
        parameters: &Tensor,
        grads: &Tensor,
        momentum: &Tensor,
        FromDevice { lr: lr_on_device, grad_scale, found_inf }: FromDevice<'_>,
    ) -> Result<()> {
        // SAFETY: all are live tensors for the length of the call.
        unsafe {
            check(torch_ext_fused_sgd(
                ptr(parameters),
                ptr(grads),
                ptr(momentum),
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
