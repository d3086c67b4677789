//! MPI's own communicators.

use std::ffi::c_int;

use mpi::ffi;

use super::group::count;
use super::request::{At, checked};
use crate::Result;

/// A handle, freed by `MPI_Finalize`.
#[derive(Clone, Copy)]
pub(super) struct Comm(pub(super) ffi::MPI_Comm);

// SAFETY: with MPI_THREAD_MULTIPLE any thread may use it; users see to the order of collectives.
unsafe impl Send for Comm {}
// SAFETY: as above.
unsafe impl Sync for Comm {}

impl Comm {
    /// What MPI itself begins with.
    pub(super) fn world() -> Self {
        // SAFETY: a constant of the library.
        Self(unsafe { ffi::RSMPI_COMM_WORLD })
    }

    /// The same ranks, whose messages are kept apart. Collective over all.
    pub(super) fn duplicate_world(at: At) -> Result<Self> {
        // SAFETY: MPI writes a handle.
        Self::create(at, |comm| unsafe { ffi::MPI_Comm_dup(Self::world().0, comm) })
    }

    /// The ranks that give the same `color`, in their order. Collective over all.
    pub(super) fn split_world(color: usize, at: At) -> Result<Self> {
        let (color, key) = (count(color)?, count(at.rank)?);
        // SAFETY: as above.
        Self::create(at, |comm| unsafe { ffi::MPI_Comm_split(Self::world().0, color, key, comm) })
    }

    /// Its errors are returned.
    fn create(at: At, create: impl FnOnce(*mut ffi::MPI_Comm) -> c_int) -> Result<Self> {
        // SAFETY: a constant of the library, overwritten by the call.
        let mut comm = unsafe { ffi::RSMPI_COMM_NULL };
        checked(at, create(&raw mut comm))?;
        // SAFETY: a constant of the library, and the communicator that was just made.
        checked(at, unsafe { ffi::MPI_Comm_set_errhandler(comm, ffi::RSMPI_ERRORS_RETURN) })?;
        Ok(Self(comm))
    }
}
