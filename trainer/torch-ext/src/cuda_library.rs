//! The part of the shim that needs CUDA's own libraries: a shared library that is opened only where there is
//! a GPU.

#[cfg(test)]
use std::ffi::c_int;
use std::ffi::{c_char, c_void};
use std::path::PathBuf;
use std::sync::OnceLock;

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

use crate::{CTensor, Result, TorchError};

const FILE_NAME: &str = "libtorch_ext_cuda.so";

type OnGraph = unsafe extern "C" fn(*mut c_void) -> *mut c_char;

/// The functions of `libtorch_ext_cuda.so`.
pub struct CudaLibrary {
    pub graph_begin: unsafe extern "C" fn(*mut *mut c_void) -> *mut c_char,
    pub graph_end: OnGraph,
    pub graph_replay: OnGraph,
    pub graph_free: OnGraph,
    pub conv2d: unsafe extern "C" fn(
        input: *const CTensor,
        weight: *const CTensor,
        stride: i64,
        padding: i64,
        groups: i64,
        out: *mut *mut CTensor,
    ) -> *mut c_char,
    pub batch_norm: unsafe extern "C" fn(
        source: *const c_char,
        input: *const CTensor,
        residual: *const CTensor,
        weight: *const CTensor,
        bias: *const CTensor,
        running_mean: *const CTensor,
        running_var: *const CTensor,
        momentum: f64,
        eps: f64,
        has_relu: bool,
        out: *mut *mut CTensor,
    ) -> *mut c_char,
    pub batch_norm_prepare:
        unsafe extern "C" fn(source: *const c_char, element: *const c_char) -> *mut c_char,
    #[cfg(test)]
    pub batch_norm_compile: unsafe extern "C" fn(
        source: *const c_char,
        element: *const c_char,
        arch: c_int,
        bytes: *mut usize,
    ) -> *mut c_char,
    _library: Library,
}

impl CudaLibrary {
    /// Returns the library, which is opened once per process: from the program's folder, or else from where
    /// the build has put it.
    pub fn get() -> Result<&'static Self> {
        static OPENED: OnceLock<Result<CudaLibrary>> = OnceLock::new();
        OPENED.get_or_init(Self::open).as_ref().map_err(Clone::clone)
    }

    fn open() -> Result<Self> {
        let beside =
            std::env::current_exe().ok().and_then(|path| Some(path.parent()?.join(FILE_NAME)));
        let built = option_env!("TORCH_EXT_CUDA_LIBRARY").map(PathBuf::from);
        let Some(path) = beside.into_iter().chain(built).find(|path| path.exists()) else {
            return Err(TorchError(format!(
                "there is no {FILE_NAME}: CUDA's headers were missing when this was built; run `make \
                 setup` and build again"
            )));
        };
        let failed = |error: libloading::Error| {
            TorchError(format!("{} cannot be opened: {error}", path.display()))
        };
        // SAFETY: the library is this crate's own; its static initialisers are libtorch's.
        let library =
            unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_LOCAL) }.map_err(failed)?;
        // SAFETY: `graph.cpp`, `gpu_conv.cpp` and `batch_norm.cpp` define these functions with these types.
        unsafe {
            Ok(Self {
                graph_begin: *library.get(b"torch_ext_graph_begin\0").map_err(failed)?,
                graph_end: *library.get(b"torch_ext_graph_end\0").map_err(failed)?,
                graph_replay: *library.get(b"torch_ext_graph_replay\0").map_err(failed)?,
                graph_free: *library.get(b"torch_ext_graph_free\0").map_err(failed)?,
                conv2d: *library.get(b"torch_ext_gpu_conv2d\0").map_err(failed)?,
                batch_norm: *library.get(b"torch_ext_batch_norm\0").map_err(failed)?,
                batch_norm_prepare: *library
                    .get(b"torch_ext_batch_norm_prepare\0")
                    .map_err(failed)?,
                #[cfg(test)]
                batch_norm_compile: *library
                    .get(b"torch_ext_batch_norm_compile\0")
                    .map_err(failed)?,
                _library: library,
            })
        }
    }
}
