//! The [`Communicator`] trait that every backend implements, and the types in its signatures.

use std::ops::Range;
use std::ptr::NonNull;

use crate::{Blame, BufferMut, CommError, DType, RawBuffer, Result};

/// How the elements of all ranks at one index are combined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ReduceOp {
    /// The sum.
    Sum,
    /// The sum divided by the number of ranks; not supported for integers.
    Mean,
    /// The maximum.
    Max,
    /// The minimum.
    Min,
}

/// A collective operation, in place on one buffer per rank.
///
/// Every rank must start the same collectives in the same order, with the same length and dtype.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Collective {
    /// Leaves the reduction over all ranks on every rank, with the same bits.
    AllReduce(ReduceOp),
    /// Copies `root`'s buffer to every rank.
    Broadcast {
        /// The rank whose buffer is sent.
        root: usize,
    },
    /// Leaves in each rank's chunk, [`chunk_range`]`(len, rank, world_size)`, its reduction over all ranks.
    /// The rest of the buffer is unspecified afterwards.
    ReduceScatter(ReduceOp),
    /// Copies each rank r's chunk, [`chunk_range`]`(len, r, world_size)`, to every other rank.
    AllGather,
    /// Completes on no rank before every rank has entered it. The buffer is empty.
    Barrier,
}

impl Collective {
    /// The name used in errors and traces.
    pub const fn name(self) -> &'static str {
        match self {
            Self::AllReduce(_) => "all_reduce",
            Self::Broadcast { .. } => "broadcast",
            Self::ReduceScatter(_) => "reduce_scatter",
            Self::AllGather => "all_gather",
            Self::Barrier => "barrier",
        }
    }
}

/// Returns the range of `len` elements that belongs to `rank`. The ranges of all ranks are contiguous and in
/// rank order; their lengths differ by at most one, the longer ones first.
pub fn chunk_range(len: usize, rank: usize, world_size: usize) -> Range<usize> {
    let (base, extra) = (len / world_size, len % world_size);
    let start = rank * base + rank.min(extra);
    start..start + base + usize::from(rank < extra)
}

/// Handle of a collective that is under way.
///
/// Dropping it waits for the collective, so that the buffer is not freed while the collective uses it.
#[must_use = "a collective is complete only after `wait`"]
pub struct Work(Option<Box<dyn Pending>>);

/// A backend's part of a [`Work`].
pub trait Pending: Send {
    /// Waits for the collective to complete. With a host buffer the result is there on return; with a device
    /// buffer, work that is queued later on the buffer's stream sees the result.
    /// # Errors
    /// The failure of the collective, a passed deadline included.
    fn wait(&mut self) -> Result<()>;
}

impl Work {
    /// Wraps a backend's handle.
    pub fn new(pending: impl Pending + 'static) -> Self {
        Self(Some(Box::new(pending)))
    }

    /// Returns the handle of a collective that is already complete.
    pub fn done() -> Self {
        Self(None)
    }

    /// Waits for the collective to complete; see [`Pending::wait`].
    ///
    /// # Errors
    /// The failure of the collective, a passed deadline included.
    pub fn wait(mut self) -> Result<()> {
        self.0.take().map_or(Ok(()), |mut pending| pending.wait())
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if let Some(mut pending) = self.0.take() {
            // The error is not lost: after a failure every later collective returns it.
            let _ = pending.wait();
        }
    }
}

/// Host memory that all ranks map, from [`Communicator::alloc_shared`]: collectives on it need no staging
/// copy.
pub struct SharedMemory {
    /// First byte of this rank's part: page-aligned, zeroed when allocated.
    pub ptr: NonNull<u8>,
    /// Length of this rank's part in bytes, rounded up to whole pages.
    pub len_bytes: usize,
    /// Keeps the mapping alive.
    pub owner: std::sync::Arc<dyn Send + Sync>,
}

// SAFETY: the mapping is plain memory that lives as long as `owner`, wherever it is used.
unsafe impl Send for SharedMemory {}

/// A group of ranks that call collectives together.
///
/// The blocking methods are safe: they borrow the buffer until they return. On device memory they return as
/// soon as the collective is queued on the device, in order with what the caller queues there;
/// [`Self::check`] tells afterwards whether it succeeded. [`Self::start`] is the unsafe primitive that a
/// backend implements; it lets a collective run while the caller does something else.
pub trait Communicator: Send + Sync {
    /// Returns this process's rank, from 0.
    fn rank(&self) -> usize;

    /// Returns the number of ranks in the group.
    fn world_size(&self) -> usize;

    /// Returns the backend's name: `shm`, `mpi`, `nccl` or `single`.
    fn backend(&self) -> &'static str;

    /// Starts a collective. Collectives run one after another, in the order in which they were started.
    ///
    /// # Safety
    /// `buffer` must be valid, as for [`BufferMut::from_raw`], until the returned [`Work`] was waited for or
    /// dropped; one of the two must happen ([`std::mem::forget`] on the [`Work`] is not allowed).
    ///
    /// # Errors
    /// [`crate::CommError`] when the communicator has already failed or does not support this collective.
    unsafe fn start(&self, collective: Collective, buffer: RawBuffer) -> Result<Work>;

    /// Runs a collective and returns when it is complete (host memory) or queued (device memory). A backend
    /// overrides this where that is cheaper than [`Self::start`] followed by [`Work::wait`].
    ///
    /// # Safety
    /// `buffer` must be valid, as for [`BufferMut::from_raw`], until this returns.
    ///
    /// # Errors
    /// Those of [`Self::start`] and [`Work::wait`].
    unsafe fn run(&self, collective: Collective, buffer: RawBuffer) -> Result<()> {
        // SAFETY: the caller keeps `buffer` valid until this returns, after the wait.
        unsafe { self.start(collective, buffer) }?.wait()
    }

    /// Allocates at least `len_bytes` of memory in which collectives over all or part of it need no staging
    /// copy. Returns `None` where the backend has no such memory. Collective: every rank asks for the same
    /// length.
    ///
    /// # Errors
    /// [`crate::CommError`] when a peer is gone or memory is short on any rank.
    fn alloc_shared(&self, len_bytes: usize) -> Result<Option<SharedMemory>> {
        let _ = len_bytes;
        Ok(None)
    }

    /// Checks that all collectives on device memory that were started so far have succeeded. Their [`Work`]
    /// ends before they do, so call this after synchronising with the device. Collectives on host memory
    /// report errors themselves.
    ///
    /// # Errors
    /// The failure of one of them.
    fn check(&self) -> Result<()> {
        Ok(())
    }

    /// Puts the collectives of a CUDA graph that was just launched on `stream` under the watchdog: a replay
    /// runs them without a call of [`Self::start`].
    ///
    /// # Safety
    /// `stream` must be a `cudaStream_t` of the device on which the collectives' buffers lie.
    ///
    /// # Errors
    /// [`crate::CommError`] when the communicator has already failed.
    unsafe fn watch_replay(&self, stream: *mut std::ffi::c_void) -> Result<()> {
        let _ = stream;
        Ok(())
    }

    /// Makes this rank's present and future collectives fail with [`crate::CommError::Aborted`], and over
    /// shared memory and MPI also those of every other rank, which get this rank's `reason` and `blame`. Over
    /// NCCL the other ranks notice that a peer is gone, or time out. Does not wait for any peer; over NCCL it
    /// may wait up to two seconds for the library. May be called from any thread.
    fn abort(&self, reason: &str, blame: Blame);

    /// Shuts the group down, after the last collective. Collective.
    ///
    /// # Errors
    /// [`crate::CommError`] when a peer does not call this before the deadline.
    fn finalize(&self) -> Result<()>;

    /// Reduces `buffer` over all ranks, in place.
    ///
    /// # Errors
    /// [`crate::CommError`]. It names the rank that is gone or late where the backend knows it: NCCL, and MPI
    /// without shared memory, do not; there the launcher finds out.
    fn all_reduce(&self, buffer: BufferMut<'_>, op: ReduceOp) -> Result<()> {
        run(self, Collective::AllReduce(op), buffer)
    }

    /// Copies `root`'s buffer to every rank.
    ///
    /// # Errors
    /// As [`Self::all_reduce`].
    fn broadcast(&self, buffer: BufferMut<'_>, root: usize) -> Result<()> {
        run(self, Collective::Broadcast { root }, buffer)
    }

    /// Leaves in this rank's chunk of `buffer` the reduction over all ranks.
    ///
    /// # Errors
    /// As [`Self::all_reduce`].
    fn reduce_scatter(&self, buffer: BufferMut<'_>, op: ReduceOp) -> Result<()> {
        run(self, Collective::ReduceScatter(op), buffer)
    }

    /// Copies each rank's chunk of `buffer` to every other rank.
    ///
    /// # Errors
    /// As [`Self::all_reduce`].
    fn all_gather(&self, buffer: BufferMut<'_>) -> Result<()> {
        run(self, Collective::AllGather, buffer)
    }

    /// Waits until every rank has called it.
    ///
    /// # Errors
    /// As [`Self::all_reduce`].
    fn barrier(&self) -> Result<()> {
        run(self, Collective::Barrier, BufferMut::host::<f32>(&mut []))
    }
}

fn run<C: Communicator + ?Sized>(
    communicator: &C,
    collective: Collective,
    buffer: BufferMut<'_>,
) -> Result<()> {
    // SAFETY: `buffer` is borrowed until this function returns.
    unsafe { communicator.run(collective, buffer.raw()) }
}

/// Refuses requests that no backend supports, before a sequence number is used up.
pub(crate) fn check_request(
    backend: &'static str,
    collective: Collective,
    buffer: &RawBuffer,
    world_size: usize,
) -> Result<()> {
    let unsupported = |what: String| Err(CommError::Unsupported { backend, what });
    match collective {
        Collective::AllReduce(ReduceOp::Mean) | Collective::ReduceScatter(ReduceOp::Mean)
            if buffer.dtype == DType::I64 =>
        {
            unsupported(format!("take the mean of integers in {}", collective.name()))
        }
        Collective::Broadcast { root } if root >= world_size => {
            unsupported(format!("broadcast from rank {root}: there are {world_size} ranks"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::chunk_range;

    #[test]
    fn chunks_are_disjoint_and_cover() {
        for len in [0, 1, 5, 7, 12, 1000] {
            for world_size in 1..=8 {
                let mut next = 0;
                for rank in 0..world_size {
                    let chunk = chunk_range(len, rank, world_size);
                    assert_eq!(chunk.start, next);
                    assert!(chunk.len().abs_diff(len / world_size) <= 1);
                    next = chunk.end;
                }
                assert_eq!(next, len);
            }
        }
    }
}
