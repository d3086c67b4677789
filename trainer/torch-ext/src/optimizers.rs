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
        grad_scale: *const CTensor,
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
        grad_scale: *const CTensor,
        lr: f64,
        momentum_factor: f64,
        weight_decay: f64,
        nesterov: bool,
        is_first_step: bool,
    ) -> *mut c_char;
}

fn optional(tensor: Option<&Tensor>) -> *const CTensor {
    tensor.map_or(null(), |tensor| ptr(tensor).cast_const())
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
    /// 1: it holds this step's number already. `grad_scale`, 0-d f32,
    /// divides the gradients first.
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
        grad_scale: Option<&Tensor>,
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
                optional(grad_scale),
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
    /// One step over flat `[n]` f32 tensors, in place. `momentum` is not read where the factor is 0.
    /// `grad_scale`, 0-d f32, divides the gradients first.
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
        grad_scale: Option<&Tensor>,
        is_first_step: bool,
    ) -> Result<()> {
        // SAFETY: all are live tensors for the length of the call.
        unsafe {
            check(torch_ext_fused_sgd(
                ptr(parameters),
                ptr(grads),
                ptr(momentum),
                optional(grad_scale),
                self.lr,
                self.momentum,
                self.weight_decay,
                self.nesterov,
                is_first_step,
            ))
        }
    }
}
