//! Non-blocking MPI operations that are waited for with a deadline.

use std::ffi::{c_char, c_int};
use std::time::{Duration, Instant};

use mpi::ffi;

use crate::{CommError, Result};

/// The operation under way, for errors.
#[derive(Debug, Clone, Copy)]
pub(super) struct At {
    pub(super) op: &'static str,
    pub(super) sequence: u64,
    pub(super) rank: usize,
}

impl At {
    pub(super) fn failed(self, reason: String) -> CommError {
        let Self { op, sequence, rank } = self;
        CommError::Collective { op, sequence, rank, reason }
    }
}

/// Turns an MPI return code into a result.
pub(super) fn checked(at: At, code: c_int) -> Result<()> {
    if code == ffi::MPI_SUCCESS as c_int {
        return Ok(());
    }
    let mut text = [0_u8; ffi::MPI_MAX_ERROR_STRING as usize + 1];
    let mut length = 0;
    // SAFETY: `text` has the length that MPI asks for, and MPI writes at most that.
    unsafe { ffi::MPI_Error_string(code, text.as_mut_ptr().cast::<c_char>(), &raw mut length) };
    let text = &text[..usize::try_from(length).unwrap_or(0).min(text.len())];
    Err(at.failed(format!("MPI says: {}", String::from_utf8_lossy(text))))
}

/// A non-blocking operation under way.
pub(super) struct Request(ffi::MPI_Request);

// SAFETY: with MPI_THREAD_MULTIPLE a request may be tested by any one thread at a time.
unsafe impl Send for Request {}

/// How long a wait polls without yielding, as MPI's own waits do.
const SPIN: Duration = Duration::from_micros(100);

/// How long a wait polls before it sleeps between polls: by then a peer is busy with something else.
const BUSY_WAIT: Duration = Duration::from_secs(1);

impl Request {
    pub(super) fn null() -> Self {
        // SAFETY: a constant of the library.
        Self(unsafe { ffi::RSMPI_REQUEST_NULL })
    }

    /// Returns the location to which MPI writes the request.
    pub(super) fn as_mut_ptr(&mut self) -> *mut ffi::MPI_Request {
        &raw mut self.0
    }

    /// Whether the operation has ended.
    pub(super) fn test(&mut self, at: At) -> Result<bool> {
        let mut done = 0;
        // SAFETY: the request is this object's own; MPI writes a flag.
        checked(at, unsafe {
            ffi::MPI_Test(&raw mut self.0, &raw mut done, ffi::RSMPI_STATUS_IGNORE)
        })?;
        Ok(done != 0)
    }

    /// Waits until the operation has ended, `timeout` has passed, or `interrupted` returns an error.
    pub(super) fn wait(
        mut self,
        at: At,
        timeout: Duration,
        interrupted: impl Fn() -> Option<CommError>,
    ) -> Result<()> {
        let start = Instant::now();
        while !self.test(at)? {
            let waited = start.elapsed();
            if let Some(error) = interrupted() {
                return Err(error);
            }
            if waited >= timeout {
                return Err(CommError::Timeout {
                    op: at.op,
                    sequence: at.sequence,
                    rank: at.rank,
                    missing: Vec::new(),
                    waited,
                    detail: "MPI does not say which".to_owned(),
                });
            }
            if waited > BUSY_WAIT {
                std::thread::sleep(Duration::from_millis(1));
            } else if waited > SPIN {
                std::thread::yield_now();
            }
        }
        Ok(())
    }

    /// Cancels a receive for which no message will come.
    pub(super) fn cancel(mut self) {
        // SAFETY: the request is this object's own; a null request is left alone by both calls.
        unsafe {
            if self.0 != ffi::RSMPI_REQUEST_NULL {
                ffi::MPI_Cancel(&raw mut self.0);
                ffi::MPI_Wait(&raw mut self.0, ffi::RSMPI_STATUS_IGNORE);
            }
        }
    }
}
