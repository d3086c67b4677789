//! CUDA graphs: work that is captured once and replayed with one launch.

use std::ffi::c_void;
use std::ptr::NonNull;

use crate::cuda_library::CudaLibrary;
use crate::{Result, TorchError, check};

/// Work that was captured once from a stream and can be launched again as a whole. It reads and writes the
/// same memory in each replay; memory that it allocates is its own until it is dropped.
pub struct CudaGraph {
    graph: NonNull<c_void>,
    library: &'static CudaLibrary,
}

impl CudaGraph {
    /// Captures what `body` queues on this thread's current stream, and on streams that join it by events;
    /// nothing of it is executed. `body` must neither wait for the device nor read from it.
    ///
    /// # Errors
    /// Those of `body`, and libtorch's when there is no GPU or an operation cannot be captured. The capture
    /// is then abandoned, and the stream is usable as before.
    ///
    /// Source: CUDA C++ Programming Guide, CUDA Graphs, stream capture.
    pub fn capture<T, E: From<TorchError>>(
        body: impl FnOnce() -> std::result::Result<T, E>,
    ) -> std::result::Result<(Self, T), E> {
        let library = CudaLibrary::get()?;
        let mut graph = std::ptr::null_mut();
        // SAFETY: a valid place for the answer.
        unsafe { check((library.graph_begin)(&raw mut graph)) }?;
        let Some(graph) = NonNull::new(graph) else {
            return Err(TorchError("no capture began".to_owned()).into());
        };
        // From here on every early return or panic drops this, which abandons the capture.
        let graph = Self { graph, library };
        let result = body()?;
        // SAFETY: the capture began above, on this thread, and has not ended.
        unsafe { check((library.graph_end)(graph.graph.as_ptr())) }?;
        Ok((graph, result))
    }

    /// Queues the graph on this thread's current stream.
    ///
    /// # Errors
    /// When CUDA cannot launch the graph.
    pub fn replay(&self) -> Result<()> {
        // SAFETY: the capture has ended successfully, or `capture` had not returned a graph.
        unsafe { check((self.library.graph_replay)(self.graph.as_ptr())) }
    }
}

impl Drop for CudaGraph {
    fn drop(&mut self) {
        // SAFETY: the only release of this pointer. Nothing can be done about a failure.
        let _ = unsafe { check((self.library.graph_free)(self.graph.as_ptr())) };
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
