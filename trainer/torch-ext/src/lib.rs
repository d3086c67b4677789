//! What `tch` lacks of libtorch, through a small C++ shim.
//!
//! Gradient views, fused optimizers, autocast on the CPU, and the GPU library opened at run time.
//! The shim links libtorch_cpu only, so that a binary starts fast and runs without a GPU.

use std::ffi::{CStr, CString, c_char, c_int, c_void};

use tch::Tensor;

mod autocast;
pub mod collective;
mod conv;
mod hooks;
mod memory;
mod optimizers;
mod replay;
mod sync_norm;

pub use autocast::autocast_bf16;
pub use conv::{ConvMethod, ConvMethods, ConvShape, ConvTable, PassSeconds, conv2d};
pub use hooks::on_gradient;
pub use memory::{peak_rss_bytes, tensor_in_shared_memory};
pub use optimizers::{AdamW, Sgd};
pub use replay::{SgdStep, replay_adamw, replay_sgd};
pub use sync_norm::{NormParts, sync_batch_norm};

/// libtorch's own message.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct TorchError(String);

/// The result of a libtorch call.
pub type Result<T> = std::result::Result<T, TorchError>;

/// `torch::Tensor`, opaque.
type CTensor = c_void;

unsafe extern "C" {
    fn torch_ext_free(message: *mut c_char);
    fn torch_ext_set_grad(parameter: *mut CTensor, grad: *const CTensor) -> *mut c_char;
    fn torch_ext_load_cuda(path: *const c_char) -> *mut c_char;
    fn torch_ext_set_cuda_device(device: c_int) -> *mut c_char;
    fn torch_ext_cuda_stream(device: c_int, stream: *mut *mut c_void) -> *mut c_char;
    fn torch_ext_cuda_peak_bytes(device: c_int, bytes: *mut i64) -> *mut c_char;
}

/// Turns the shim's answer into a result, and frees the message.
///
/// # Safety
/// `message` is what a function of the shim returned, and is not used again.
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

/// Opens libtorch's GPU library; afterwards `tch::Cuda` sees the devices.
///
/// # Errors
/// When it is not there or its own libraries are missing; the message names them.
pub fn load_cuda() -> Result<()> {
    // The build's libtorch first, then whatever the loader finds, for a binary that was carried to
    // another machine.
    let built = concat!(env!("TORCH_EXT_LIBTORCH"), "/libtorch_cuda.so");
    let first = load(built);
    if first.is_ok() || load("libtorch_cuda.so").is_ok() { Ok(()) } else { first }
}

fn load(path: &str) -> Result<()> {
    let path = CString::new(path).map_err(|error| TorchError(error.to_string()))?;
    // SAFETY: a NUL-terminated string that outlives the call.
    unsafe { check(torch_ext_load_cuda(path.as_ptr())) }
}

/// Makes `device` the current one of this thread. A stream's null handle means the current device's.
///
/// # Errors
/// When the GPU library is not loaded or there is no such device.
pub fn set_cuda_device(device: usize) -> Result<()> {
    // SAFETY: no pointer is passed.
    unsafe { check(torch_ext_set_cuda_device(device as c_int)) }
}

/// The `cudaStream_t` on which libtorch works on `device`.
///
/// # Errors
/// When the GPU library is not loaded or there is no such device.
pub fn cuda_stream(device: usize) -> Result<*mut c_void> {
    let mut stream = std::ptr::null_mut();
    // SAFETY: `stream` is a valid place for the answer.
    unsafe { check(torch_ext_cuda_stream(device as c_int, &raw mut stream)) }?;
    Ok(stream)
}

/// The most bytes that libtorch's allocator has held on `device`.
///
/// # Errors
/// When the GPU library is not loaded or there is no such device.
pub fn cuda_peak_bytes(device: usize) -> Result<u64> {
    let mut bytes = 0;
    // SAFETY: `bytes` is a valid place for the answer.
    unsafe { check(torch_ext_cuda_peak_bytes(device as c_int, &raw mut bytes)) }?;
    Ok(u64::try_from(bytes).unwrap_or(0))
}
