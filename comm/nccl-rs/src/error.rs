//! What can go wrong.

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
        /// Its names that were tried.
        library: String,
        /// What the dynamic linker says.
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
    /// NCCL refused or failed.
    #[error("{function}: {text}{}{detail}", if detail.is_empty() { "" } else { "; " })]
    Nccl {
        /// The function that was called.
        function: &'static str,
        /// The `ncclResult_t`.
        code: i32,
        /// NCCL's words for the code.
        text: String,
        /// NCCL's words for the last error of this communicator; may be empty.
        detail: String,
    },
    /// CUDA refused or failed.
    #[error("{function}: {text}")]
    Cuda {
        /// The function that was called.
        function: &'static str,
        /// The `cudaError_t`.
        code: i32,
        /// CUDA's words for the code.
        text: String,
    },
    /// The communicator was aborted, here or by a watchdog.
    #[error("the NCCL communicator was aborted")]
    Aborted,
    /// A deadline passed.
    #[error("{what} did not end within {after:.1?}")]
    Timeout {
        /// What was waited for.
        what: &'static str,
        /// How long.
        after: std::time::Duration,
    },
}

impl Error {
    /// Whether a peer is the likely cause: NCCL says that one is gone, or a socket failed while ranks were
    /// talking to each other, which is what a process that has ended leaves of its connections.
    pub fn is_of_a_peer(&self) -> bool {
        match self {
            Self::Nccl { code: REMOTE_ERROR, .. } => true,
            Self::Nccl { code: SYSTEM_ERROR, function, .. } => *function == BACKGROUND,
            _ => false,
        }
    }
}

/// A copy of a string that a library keeps.
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

/// An error and what it came from, where its own words do not say.
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
        let error = |function, code| Error::Nccl {
            function,
            code,
            text: "unhandled system error".to_owned(),
            detail: String::new(),
        };
        assert!(error(BACKGROUND, REMOTE_ERROR).is_of_a_peer());
        assert!(error("ncclAllReduce", REMOTE_ERROR).is_of_a_peer());
        assert!(error(BACKGROUND, SYSTEM_ERROR).is_of_a_peer());
        assert!(!error("ncclAllReduce", SYSTEM_ERROR).is_of_a_peer());
        let unhandled_cuda_error = 1;
        assert!(!error(BACKGROUND, unhandled_cuda_error).is_of_a_peer());
        assert!(!Error::Aborted.is_of_a_peer());
    }
}
