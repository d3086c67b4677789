//! GPU set-up and queries, through libtorch_cpu's device-agnostic interface.

use std::ffi::{CString, c_char, c_int, c_void};

use tch::{Device, Tensor};

use crate::{CTensor, Result, TorchError, check, ptr};

unsafe extern "C" {
    fn torch_ext_load_cuda(path: *const c_char) -> *mut c_char;
    fn torch_ext_set_cuda_device(device: c_int) -> *mut c_char;
    fn torch_ext_leave_default_stream(device: c_int) -> *mut c_char;
    fn torch_ext_set_tf32(allowed: bool) -> *mut c_char;
    fn torch_ext_upload(host: *const CTensor, device: c_int, out: *mut *mut CTensor)
    -> *mut c_char;
    fn torch_ext_cuda_stream(device: c_int, stream: *mut *mut c_void) -> *mut c_char;
    fn torch_ext_cuda_peak_bytes(device: c_int, bytes: *mut i64) -> *mut c_char;
}

/// Opens libtorch's GPU library (`libtorch_cuda.so`); afterwards `tch::Cuda` sees the devices.
///
/// # Errors
/// When the library is not found, or libraries that it depends on are missing; the message names them.
pub fn load_cuda() -> Result<()> {
    // The libtorch of the build first, then whatever the loader finds, for a binary that was copied to
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

/// Makes `device` this thread's current device, and a stream other than the default stream its current stream
/// there: graphs cannot be captured on the default stream.
///
/// # Errors
/// When the GPU library is not loaded or there is no such device.
pub fn use_cuda_device(device: usize) -> Result<()> {
    // SAFETY: no pointer is passed.
    unsafe {
        check(torch_ext_set_cuda_device(device as c_int))?;
        check(torch_ext_leave_default_stream(device as c_int))
    }
}

/// Sets whether convolutions and matrix products of fp32 operands on a GPU round these to TF32, which has 10
/// bits of mantissa: several times as fast on tensor cores. Without effect elsewhere.
///
/// # Errors
/// When libtorch refuses.
pub fn set_tf32(allowed: bool) -> Result<()> {
    // SAFETY: no pointer is passed.
    unsafe { check(torch_ext_set_tf32(allowed)) }
}

/// Copies `host`, a tensor on the CPU, to `device`. The host does not wait for the device: the copy goes
/// through pinned memory, which libtorch keeps until the copy is done and then reuses. Copies from memory
/// that is not pinned may wait for the stream.
///
/// # Errors
/// When memory is short.
///
/// Source: CUDA Runtime API, API synchronization behavior.
pub fn upload(host: Tensor, device: Device) -> Result<Tensor> {
    let Device::Cuda(device) = device else { return Ok(host) };
    let mut tensor = std::ptr::null_mut();
    // SAFETY: a live tensor, and a valid place for the answer.
    unsafe { check(torch_ext_upload(ptr(&host), device as c_int, &raw mut tensor)) }?;
    // SAFETY: the shim made a tensor on the heap and passed on its ownership.
    Ok(unsafe { Tensor::from_ptr(tensor.cast()) })
}

/// Returns libtorch's current stream (`cudaStream_t`) on `device`.
///
/// # Errors
/// When the GPU library is not loaded or there is no such device.
pub fn cuda_stream(device: usize) -> Result<*mut c_void> {
    let mut stream = std::ptr::null_mut();
    // SAFETY: `stream` is a valid place for the answer.
    unsafe { check(torch_ext_cuda_stream(device as c_int, &raw mut stream)) }?;
    Ok(stream)
}

/// Returns the peak number of bytes that libtorch's allocator has reserved on `device`, pools of graphs
/// included: PyTorch's `max_memory_reserved`. The CUDA context and NCCL's buffers come on top.
///
/// # Errors
/// When the GPU library is not loaded or there is no such device.
pub fn cuda_peak_bytes(device: usize) -> Result<u64> {
    let mut bytes = 0;
    // SAFETY: `bytes` is a valid place for the answer.
    unsafe { check(torch_ext_cuda_peak_bytes(device as c_int, &raw mut bytes)) }?;
    Ok(u64::try_from(bytes).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    #[test]
    fn tf32_can_be_switched_off_and_on() {
        super::set_tf32(false).unwrap();
        super::set_tf32(true).unwrap();
    }
}
