//! Autocast: computing in 16 bits where it is numerically safe.

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

/// The dtype that autocast computes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AutocastDtype {
    /// bfloat16: the exponent range of fp32.
    Bf16,
    /// IEEE half precision: three more bits of mantissa than bfloat16, and no finite value beyond 65,504.
    Fp16,
}

/// Leaves autocast when it goes out of scope, also when a panic unwinds.
struct Guard {
    is_cuda: bool,
    was_enabled: bool,
}

impl Drop for Guard {
    fn drop(&mut self) {
        // SAFETY: undoes the enter call that made this guard, on the same thread. It can fail only if
        // libtorch does not know the device type, and then the enter call had failed before.
        let _ = unsafe { check(torch_ext_autocast_exit(self.is_cuda, self.was_enabled)) };
    }
}

/// Runs `body` on this thread with autocast to `dtype` on `device`. Casts of parameters are cached until the
/// outermost call returns, so `body` must not change a parameter.
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
