//! Handles of MPI communicators.

use std::time::Duration;

use mpi::ffi;

use super::group::count;
use super::request::{At, Request, checked};
use crate::Result;

/// Handle of an MPI communicator, which `MPI_Finalize` frees.
#[derive(Clone, Copy)]
pub(super) struct Comm(pub(super) ffi::MPI_Comm);

// SAFETY: with MPI_THREAD_MULTIPLE any thread may use the handle; users ensure the order of collectives.
unsafe impl Send for Comm {}
// SAFETY: as above.
unsafe impl Sync for Comm {}

impl Comm {
    /// Returns `MPI_COMM_WORLD`.
    pub(super) fn world() -> Self {
        // SAFETY: a constant of the library.
        Self(unsafe { ffi::RSMPI_COMM_WORLD })
    }

    /// Makes MPI return errors of this communicator, and of those derived from it, instead of ending the job.
    pub(super) fn return_errors(self, at: At) -> Result<()> {
        // SAFETY: a constant of the library, and a valid communicator.
        checked(at, unsafe { ffi::MPI_Comm_set_errhandler(self.0, ffi::RSMPI_ERRORS_RETURN) })
    }

    /// Duplicates `MPI_COMM_WORLD`, so that messages are kept apart. Collective over all ranks, within
    /// `timeout`.
    pub(super) fn duplicate_world(at: At, timeout: Duration) -> Result<Self> {
        // On the heap and leaked: MPI may write to it for as long as the request exists.
        // SAFETY: a constant of the library, overwritten by the call.
        let comm = Box::leak(Box::new(unsafe { ffi::RSMPI_COMM_NULL }));
        let mut request = Request::null();
        // SAFETY: MPI writes the handle to memory that is never freed, 8 bytes.
        checked(at, unsafe {
            ffi::MPI_Comm_idup(Self::world().0, &raw mut *comm, request.as_mut_ptr())
        })?;
        request.wait(at, timeout, || None)?;
        Self(*comm).return_errors(at)?;
        Ok(Self(*comm))
    }

    /// Splits `MPI_COMM_WORLD` into groups of the ranks with the same `color`, in rank order. Collective over
    /// all ranks, which must have connected: MPI waits for them without a deadline.
    pub(super) fn split_world(color: usize, at: At) -> Result<Self> {
        let (color, key) = (count(color)?, count(at.rank)?);
        // SAFETY: a constant of the library, overwritten by the call.
        let mut comm = unsafe { ffi::RSMPI_COMM_NULL };
        // SAFETY: MPI writes a handle.
        checked(at, unsafe { ffi::MPI_Comm_split(Self::world().0, color, key, &raw mut comm) })?;
        Self(comm).return_errors(at)?;
        Ok(Self(comm))
    }
}
