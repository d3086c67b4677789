//! Computing in bfloat16 where it is safe.

use std::ffi::c_char;

use tch::Device;

use crate::{Result, check};

unsafe extern "C" {
    fn torch_ext_autocast_enter(is_cuda: bool, was_enabled: *mut bool) -> *mut c_char;
    fn torch_ext_autocast_exit(is_cuda: bool, was_enabled: bool) -> *mut c_char;
}

/// Leaves autocast when it goes out of scope, also by a panic.
struct Guard {
    is_cuda: bool,
    was_enabled: bool,
}

impl Drop for Guard {
    fn drop(&mut self) {
        // SAFETY: undoes the enter that made this guard, on the same thread. It can fail only if
        // libtorch does not know the device type, and then enter had failed before.
        let _ = unsafe { check(torch_ext_autocast_exit(self.is_cuda, self.was_enabled)) };
    }
}

/// Runs `body` with autocast to bfloat16 on `device`, on this thread. Casts of parameters are
/// remembered until the outermost call returns, so a parameter must not be changed inside.
///
/// # Errors
/// When libtorch does not know the device.
pub fn autocast_bf16<T>(device: Device, body: impl FnOnce() -> T) -> Result<T> {
    let is_cuda = device.is_cuda();
    let mut was_enabled = false;
    // SAFETY: `was_enabled` is a valid place for the answer.
    unsafe { check(torch_ext_autocast_enter(is_cuda, &raw mut was_enabled)) }?;
    let _guard = Guard { is_cuda, was_enabled };
    Ok(body())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Kind, Tensor};

    #[test]
    fn matrix_products_are_bf16_inside_and_fp32_outside() {
        let a = Tensor::ones([4, 4], (Kind::Float, Device::Cpu));
        let inside = autocast_bf16(Device::Cpu, || a.matmul(&a).kind()).unwrap();
        assert_eq!((inside, a.matmul(&a).kind()), (Kind::BFloat16, Kind::Float));
    }
}
