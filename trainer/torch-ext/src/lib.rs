//! What `tch` lacks of libtorch, through a small C++ shim.
//!
//! Gradient views and hooks, fused optimizers, convolutions, autocast, and the GPU library opened at run
//! time. The shim links libtorch_cpu only, so that a binary starts fast and runs without a GPU; CUDA graphs
//! and kernels are in a shared library of their own, which is opened on first use.

use std::ffi::{CStr, c_char, c_void};

use tch::Tensor;

mod autocast;
mod batch_norm;
pub mod collective;
mod conv;
mod cuda;
mod cuda_library;
mod graph;
mod hooks;
mod memory;
mod optimizers;
mod replay;
mod sync_norm;

pub use autocast::{AutocastDtype, autocast};
pub use batch_norm::{NormParts, fused_batch_norm, prepare_batch_norm};
pub use conv::{ConvMethod, ConvMethods, ConvShape, ConvTable, MethodSeconds, conv2d};
pub use cuda::{cuda_peak_bytes, cuda_stream, load_cuda, set_tf32, upload, use_cuda_device};
pub use graph::CudaGraph;
pub use hooks::{gather_grads, on_gradient};
pub use memory::{keep_freed_memory, peak_rss_bytes, tensor_in_shared_memory};
pub use optimizers::{AdamW, DeviceInputs, Sgd, newton_schulz, norms, unscale};
pub use replay::{SgdStep, replay_adamw, replay_sgd};
pub use sync_norm::sync_batch_norm;

/// An error of libtorch or the shim, as its message.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct TorchError(String);

/// The result of a libtorch call.
pub type Result<T> = std::result::Result<T, TorchError>;

/// `torch::Tensor`, as an opaque type.
type CTensor = c_void;

unsafe extern "C" {
    fn torch_ext_free(message: *mut c_char);
    fn torch_ext_set_grad(parameter: *mut CTensor, grad: *const CTensor) -> *mut c_char;
}

/// Returns a list of tensors as the array of pointers that the shim expects.
fn pointers(tensors: &[Tensor]) -> Vec<*const CTensor> {
    tensors.iter().map(|tensor| ptr(tensor).cast_const()).collect()
}

/// Converts a return value of the shim (null, or an error message) to a result, and frees the message.
///
/// # Safety
/// `message` was returned by a function of the shim, and is not used again.
unsafe fn check(message: *mut c_char) -> Result<()> {
    if message.is_null() {
        return Ok(());
    }
    // SAFETY: the shim returns a NUL-terminated string made by strdup.
    let text = unsafe { CStr::from_ptr(message) }.to_string_lossy().into_owned();
    // SAFETY: as above; this is its only release.
    unsafe { torch_ext_free(message) };
    Err(TorchError(text))
}

fn ptr(tensor: &Tensor) -> *mut CTensor {
    tensor.as_ptr().cast_mut().cast()
}

/// Makes `grad` the gradient of `parameter`, so that backward adds to it in place.
///
/// # Errors
/// When shapes, dtypes or devices differ.
pub fn set_grad(parameter: &Tensor, grad: &Tensor) -> Result<()> {
    // SAFETY: both are live tensors for the length of the call.
    unsafe { check(torch_ext_set_grad(ptr(parameter), ptr(grad))) }
}
