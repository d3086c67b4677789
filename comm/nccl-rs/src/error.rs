//! Errors of NCCL and CUDA.

use std::ffi::{CStr, c_char};

use crate::comm::BACKGROUND;
use crate::sys::{REMOTE_ERROR, SYSTEM_ERROR};

/// The result of a call into NCCL or CUDA.
pub type Result<T> = std::result::Result<T, Error>;

/// A failed call.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A library could not be opened.
    #[error("cannot open {library}: {reason}")]
    Open {
        /// The file names that were tried.
        library: String,
        /// The dynamic linker's error messages.
        reason: String,
    },
    /// A library is too old.
    #[error("{library} has no function {function}; it may be too old")]
    Missing {
        /// The library.
        library: &'static str,
        /// The function.
        function: &'static str,
    },
    /// An NCCL function failed.
    #[error("{function}: {text}{}{detail}", if detail.is_empty() { "" } else { "; " })]
    Nccl {
        /// The function that was called.
        function: &'static str,
        /// The `ncclResult_t`.
        code: i32,
        /// NCCL's description of the code.
        text: String,
        /// NCCL's description of the communicator's last error; may be empty.
        detail: String,
    },
    /// A CUDA function failed.
    #[error("{function}: {text}")]
    Cuda {
        /// The function that was called.
        function: &'static str,
        /// The `cudaError_t`.
        code: i32,
        /// CUDA's description of the code.
        text: String,
    },
    /// The communicator was aborted or finalized before the call.
    #[error("the NCCL communicator was aborted")]
    Aborted,
    /// A deadline passed.
    #[error("{what} did not end within {after:.1?}")]
    Timeout {
        /// The operation that was waited for.
        what: &'static str,
        /// How long it was waited for.
        after: std::time::Duration,
    },
}

impl Error {
    /// Returns whether a peer is the likely cause: NCCL reports that a peer is gone, or a system call failed in
    /// a background operation, which is how the connections of an exited process break. A full `/dev/shm` also
    /// fails there, and NCCL's description tells it apart (`ncclShmOpen`).
    pub fn is_of_a_peer(&self) -> bool {
        match self {
            Self::Nccl { code: REMOTE_ERROR, .. } => true,
            Self::Nccl { code: SYSTEM_ERROR, function, detail, .. } => {
                *function == BACKGROUND && !detail.contains("creating shared memory")
            }
            _ => false,
        }
    }
}

/// Copies a string that a library owns.
///
/// # Safety
/// `text` is null or points to a C string.
pub(crate) unsafe fn text_of(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: the caller's promise.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().trim().to_owned()
}

/// Formats an error with its source, if it has one.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_that_broke_is_told_from_a_call_that_was_refused() {
        let failed = |function, code, detail: &str| {
            let (text, detail) = ("unhandled system error".to_owned(), detail.to_owned());
            Error::Nccl { function, code, text, detail }
        };
        let error = |function, code| failed(function, code, "");
        assert!(error(BACKGROUND, REMOTE_ERROR).is_of_a_peer());
        assert!(error("ncclAllReduce", REMOTE_ERROR).is_of_a_peer());
        assert!(error(BACKGROUND, SYSTEM_ERROR).is_of_a_peer());
        assert!(!error("ncclAllReduce", SYSTEM_ERROR).is_of_a_peer());
        let full = "Error while creating shared memory segment /dev/shm/nccl-aZ3xQ1 (size 9637888), error: \
                    No space left on device (28)";
        assert!(!failed(BACKGROUND, SYSTEM_ERROR, full).is_of_a_peer());
        let gone = full.replace("creating", "attaching to");
        assert!(failed(BACKGROUND, SYSTEM_ERROR, &gone).is_of_a_peer());
        let unhandled_cuda_error = 1;
        assert!(!error(BACKGROUND, unhandled_cuda_error).is_of_a_peer());
        assert!(!Error::Aborted.is_of_a_peer());
    }
}
