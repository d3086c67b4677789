//! The CUDA versions of the driver and the runtime.

use std::ffi::c_int;
use std::fmt;

use libloading::os::unix::Library;

use crate::sys::{self, table};
use crate::{Error, Result};

/// A version of CUDA.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct CudaVersion {
    /// The first number.
    pub major: u32,
    /// The second.
    pub minor: u32,
}

impl CudaVersion {
    /// Decodes a `CUDA_VERSION`: 12040 is 12.4.
    pub const fn from_code(code: u32) -> Self {
        Self { major: code / 1000, minor: code % 1000 / 10 }
    }

    /// Returns the newest CUDA version that the installed driver supports. It runs programs built for any
    /// version with the same major number, or a smaller one.
    ///
    /// <https://docs.nvidia.com/deploy/cuda-compatibility/>
    ///
    /// # Errors
    /// [`Error::Open`] when there is no driver.
    pub fn of_driver() -> Result<Self> {
        let library = sys::open(&["libcuda.so.1"], b"cuDriverGetVersion\0")?;
        // SAFETY: this name is the driver's.
        let driver = unsafe { Driver::load(library) }?;
        read("cuDriverGetVersion", driver.cuDriverGetVersion)
    }

    /// Returns the version of the CUDA runtime, which libtorch brings.
    ///
    /// # Errors
    /// [`Error::Open`] when there is no CUDA runtime.
    pub fn of_runtime() -> Result<Self> {
        let names = ["libcudart.so.13", "libcudart.so.12", "libcudart.so"];
        let library = sys::open(&names, b"cudaRuntimeGetVersion\0")?;
        // SAFETY: these names are the CUDA runtime's.
        let runtime = unsafe { Runtime::load(library) }?;
        read("cudaRuntimeGetVersion", runtime.cudaRuntimeGetVersion)
    }
}

impl fmt::Display for CudaVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

table! {
    /// The driver's functions.
    Driver of "the CUDA driver";
    /// <https://docs.nvidia.com/cuda/cuda-driver-api/group__CUDA__VERSION.html>
    fn cuDriverGetVersion(*mut c_int) -> c_int;
    optional
}

table! {
    /// The runtime's functions.
    Runtime of "the CUDA runtime";
    /// <https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART____VERSION.html>
    fn cudaRuntimeGetVersion(*mut c_int) -> c_int;
    optional
}

fn read(
    function: &'static str,
    call: unsafe extern "C" fn(*mut c_int) -> c_int,
) -> Result<CudaVersion> {
    let mut code = 0;
    // SAFETY: both functions write one number.
    let status = unsafe { call(&raw mut code) };
    match u32::try_from(code) {
        Ok(code) if status == 0 && code > 0 => Ok(CudaVersion::from_code(code)),
        _ => Err(Error::Cuda { function, code: status, text: "no version".to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_their_codes() {
        assert_eq!(CudaVersion::from_code(12040).to_string(), "12.4");
        assert!(CudaVersion::from_code(12090) < CudaVersion::from_code(13000));
    }
}
