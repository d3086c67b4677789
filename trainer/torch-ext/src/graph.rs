//! CUDA graphs: work that is captured once and replayed with one launch.

use std::ffi::{c_char, c_void};
use std::path::PathBuf;
use std::ptr::NonNull;
use std::sync::OnceLock;

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

use crate::{Result, TorchError, check};

const FILE_NAME: &str = "libtorch_ext_cuda.so";

type Call = unsafe extern "C" fn(*mut c_void) -> *mut c_char;

/// The shim's functions that need CUDA's own libraries.
struct Functions {
    begin: unsafe extern "C" fn(*mut *mut c_void) -> *mut c_char,
    end: Call,
    replay: Call,
    free: Call,
    _library: Library,
}

impl Functions {
    /// Opened once in a process, beside the program or where the build has put it.
    fn get() -> Result<&'static Self> {
        static OPENED: OnceLock<Result<Functions>> = OnceLock::new();
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
        // SAFETY: the library is this crate's own; its initialisers are libtorch's.
        let library =
            unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_LOCAL) }.map_err(failed)?;
        // SAFETY: `graph.cpp` defines these functions with these types.
        unsafe {
            Ok(Self {
                begin: *library.get(b"torch_ext_graph_begin\0").map_err(failed)?,
                end: *library.get(b"torch_ext_graph_end\0").map_err(failed)?,
                replay: *library.get(b"torch_ext_graph_replay\0").map_err(failed)?,
                free: *library.get(b"torch_ext_graph_free\0").map_err(failed)?,
                _library: library,
            })
        }
    }
}

/// What was queued once on a stream, to be queued again as a whole. It reads and writes the same memory
/// each time; what it allocates stays its own until it is dropped.
pub struct CudaGraph {
    graph: NonNull<c_void>,
    functions: &'static Functions,
}

impl CudaGraph {
    /// Captures what `body` queues on this thread's current stream, and what joins that by events:
    /// nothing of it is executed. `body` must not wait for the device, nor read from it.
    ///
    /// # Errors
    /// Those of `body`, and libtorch's when there is no GPU or something cannot be captured. Then the
    /// capture is given up, and the stream works as before.
    ///
    /// Source: CUDA C++ Programming Guide, CUDA Graphs, stream capture.
    pub fn capture<T, E: From<TorchError>>(
        body: impl FnOnce() -> std::result::Result<T, E>,
    ) -> std::result::Result<(Self, T), E> {
        let functions = Functions::get()?;
        let mut graph = std::ptr::null_mut();
        // SAFETY: a valid place for the answer.
        unsafe { check((functions.begin)(&raw mut graph)) }?;
        let Some(graph) = NonNull::new(graph) else {
            return Err(TorchError("no capture began".to_owned()).into());
        };
        // Dropped on every way out that follows, also by a panic, which gives the capture up.
        let graph = Self { graph, functions };
        let result = body()?;
        // SAFETY: the capture began above, on this thread, and has not ended.
        unsafe { check((functions.end)(graph.graph.as_ptr())) }?;
        Ok((graph, result))
    }

    /// Queues it on this thread's current stream.
    ///
    /// # Errors
    /// CUDA's.
    pub fn replay(&self) -> Result<()> {
        // SAFETY: the capture has ended well, or there would be no graph.
        unsafe { check((self.functions.replay)(self.graph.as_ptr())) }
    }
}

impl Drop for CudaGraph {
    fn drop(&mut self) {
        // SAFETY: its only release. A failure leaves nothing to be done.
        let _ = unsafe { check((self.functions.free)(self.graph.as_ptr())) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_gpu_a_capture_says_why_it_cannot_be() {
        if std::path::Path::new("/dev/nvidiactl").exists() {
            return println!("skipped: there is a GPU");
        }
        let error = CudaGraph::capture(|| Ok::<_, TorchError>(())).err().unwrap().to_string();
        let expected =
            if option_env!("TORCH_EXT_CUDA_LIBRARY").is_some() { "CUDA" } else { "make setup" };
        assert!(error.contains(expected), "{error}");
        assert!(!error.contains("cannot be opened"), "{error}");
    }
}
