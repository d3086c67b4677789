//! Computing in 16 bits where it is safe.

use std::ffi::c_char;

use tch::Device;

use crate::{Result, check};

unsafe extern "C" {
    fn torch_ext_autocast_enter(
        is_cuda: bool,
        is_fp16: bool,
        was_enabled: *mut bool,
    ) -> *mut c_char;
    fn torch_ext_autocast_exit(is_cuda: bool, was_enabled: bool) -> *mut c_char;
}

/// What autocast computes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AutocastDtype {
    /// bfloat16: the range of fp32.
    Bf16,
    /// IEEE half precision: three bits more, and nothing beyond 65,504.
    Fp16,
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

/// Runs `body` with autocast to `dtype` on `device`, on this thread. Casts of parameters are
/// remembered until the outermost call returns, so a parameter must not be changed inside.
///
/// # Errors
/// When libtorch does not know the device.
pub fn autocast<T>(device: Device, dtype: AutocastDtype, body: impl FnOnce() -> T) -> Result<T> {
    let (is_cuda, is_fp16) = (device.is_cuda(), dtype == AutocastDtype::Fp16);
    let mut was_enabled = false;
    // SAFETY: `was_enabled` is a valid place for the answer.
    unsafe { check(torch_ext_autocast_enter(is_cuda, is_fp16, &raw mut was_enabled)) }?;
    let _guard = Guard { is_cuda, was_enabled };
    Ok(body())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Kind, Tensor};

    #[test]
    fn matrix_products_are_16_bits_inside_and_fp32_outside() {
        let a = Tensor::ones([4, 4], (Kind::Float, Device::Cpu));
        for (dtype, kind) in
            [(AutocastDtype::Bf16, Kind::BFloat16), (AutocastDtype::Fp16, Kind::Half)]
        {
            let inside = autocast(Device::Cpu, dtype, || a.matmul(&a).kind()).unwrap();
            assert_eq!((inside, a.matmul(&a).kind()), (kind, Kind::Float));
        }
    }
}
