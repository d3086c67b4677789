//! What every backend offers.

use std::ops::Range;
use std::ptr::NonNull;

use crate::{Blame, BufferMut, CommError, DType, RawBuffer, Result};

/// How elements of different ranks become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ReduceOp {
    /// Their sum.
    Sum,
    /// Their sum divided by the number of ranks; not for integers.
    Mean,
    /// The largest.
    Max,
    /// The smallest.
    Min,
}

/// A collective operation, in place on one buffer a rank.
///
/// Every rank starts the same collectives in the same order with the same length and dtype.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Collective {
    /// Every rank ends with the reduction over all ranks. The result is bit-equal on all of them.
    AllReduce(ReduceOp),
    /// Every rank ends with `root`'s buffer.
    Broadcast {
        /// The rank whose buffer is sent.
        root: usize,
    },
    /// Chunk [`chunk_range`]`(len, rank, world_size)` of a rank's buffer ends as the reduction over
    /// all ranks; the rest is unspecified.
    ReduceScatter(ReduceOp),
    /// Chunk [`chunk_range`]`(len, r, world_size)` ends as rank r's, on every rank.
    AllGather,
    /// Nobody returns before everybody has entered. The buffer is empty.
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

/// The part of `len` elements that belongs to `rank`: contiguous, in rank order, sizes differing by
/// at most one, the longer ones first.
pub fn chunk_range(len: usize, rank: usize, world_size: usize) -> Range<usize> {
    let (base, extra) = (len / world_size, len % world_size);
    let start = rank * base + rank.min(extra);
    start..start + base + usize::from(rank < extra)
}

/// A collective that is under way.
///
/// Dropping it waits for it, so that its buffer is never freed under it.
#[must_use = "a collective is complete only after `wait`"]
pub struct Work(Option<Box<dyn Pending>>);

/// A backend's handle of a collective under way.
pub trait Pending: Send {
    /// Waits for the end: for a host buffer until the result is there; for a device buffer until
    /// work queued later on the buffer's stream will see the result.
    ///
    /// # Errors
    /// Whatever made the collective fail; the deadline included.
    fn wait(&mut self) -> Result<()>;
}

impl Work {
    /// Wraps a backend's handle.
    pub fn new(pending: impl Pending + 'static) -> Self {
        Self(Some(Box::new(pending)))
    }

    /// A collective that is complete already.
    pub fn done() -> Self {
        Self(None)
    }

    /// See [`Pending::wait`].
    ///
    /// # Errors
    /// Whatever made the collective fail; the deadline included.
    pub fn wait(mut self) -> Result<()> {
        self.0.take().map_or(Ok(()), |mut pending| pending.wait())
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if let Some(mut pending) = self.0.take() {
            // The collective's own error reaches the caller through the next one.
            let _ = pending.wait();
        }
    }
}

/// Memory in which a collective needs no copy, from [`Communicator::alloc_shared`].
pub struct SharedMemory {
    /// Its first byte, aligned to a page, zeroed.
    pub ptr: NonNull<u8>,
    /// Its length.
    pub len_bytes: usize,
    /// Keeps the mapping alive.
    pub owner: std::sync::Arc<dyn Send + Sync>,
}

// SAFETY: the mapping is plain memory that lives as long as `owner`, wherever it is used.
unsafe impl Send for SharedMemory {}

/// A group of ranks that call collectives together.
///
/// The blocking methods are safe: the buffer is borrowed until they return. [`Self::start`] is
/// what a backend implements, and lets a collective run while the caller does something else. On device
/// memory they return as soon as the collective is queued on the device, in order with what the caller
/// queues there; [`Self::check`] tells afterwards whether it was good.
pub trait Communicator: Send + Sync {
    /// This process's place, from 0.
    fn rank(&self) -> usize;

    /// Ranks in the group.
    fn world_size(&self) -> usize;

    /// `shm`, `mpi`, `nccl` or `single`.
    fn backend(&self) -> &'static str;

    /// Starts a collective. Collectives run one after another in the order in which they were
    /// started.
    ///
    /// # Safety
    /// `buffer` is valid, as [`BufferMut::from_raw`] asks, until the returned [`Work`] was waited
    /// for or dropped; that must happen ([`std::mem::forget`] on it is not allowed).
    ///
    /// # Errors
    /// [`crate::CommError`] when the communicator has already failed or cannot do this.
    unsafe fn start(&self, collective: Collective, buffer: RawBuffer) -> Result<Work>;

    /// Runs a collective: to its end on host memory, until it is queued on device memory. A backend overrides
    /// this where that is cheaper than starting it and waiting.
    ///
    /// # Safety
    /// `buffer` is valid, as [`BufferMut::from_raw`] asks, until this returns.
    ///
    /// # Errors
    /// Those of [`Self::start`] and [`Work::wait`].
    unsafe fn run(&self, collective: Collective, buffer: RawBuffer) -> Result<()> {
        // SAFETY: the caller keeps `buffer` valid until the work has been waited for, here.
        unsafe { self.start(collective, buffer) }?.wait()
    }

    /// Memory of `len_bytes` in which collectives over all or part of it need no copy, or `None`
    /// where the backend has no such thing. Collective: every rank asks for the same length.
    ///
    /// # Errors
    /// [`crate::CommError`] when a peer is gone or memory is short.
    fn alloc_shared(&self, len_bytes: usize) -> Result<Option<SharedMemory>> {
        let _ = len_bytes;
        Ok(None)
    }

    /// Whether all collectives on device memory that were started so far are good. Their [`Work`] ends before they
    /// do: ask after the device was waited for. Those on host memory have said it themselves.
    ///
    /// # Errors
    /// Whatever made one of them fail.
    fn check(&self) -> Result<()> {
        Ok(())
    }

    /// Has collectives looked after that were captured into a CUDA graph, which was just queued on
    /// `stream`: when a graph is replayed, nobody calls [`Self::start`].
    ///
    /// # Safety
    /// `stream` is a `cudaStream_t` of the device whose memory the collectives are on.
    ///
    /// # Errors
    /// [`crate::CommError`] when the communicator has already failed.
    unsafe fn replayed(&self, stream: *mut std::ffi::c_void) -> Result<()> {
        let _ = stream;
        Ok(())
    }

    /// Makes this rank's present and future collectives fail with [`crate::CommError::Aborted`], and over shared
    /// memory and MPI those of every other rank, with this rank's `reason` and whom it blames. Over NCCL the others
    /// see that a peer is gone, or their deadlines pass. Waits for nobody, but up to two seconds for NCCL itself;
    /// may be called from any thread.
    fn abort(&self, reason: &str, blame: Blame);

    /// Ends the group in good order, after the last collective. Collective.
    ///
    /// # Errors
    /// [`crate::CommError`] when a peer does not come.
    fn finalize(&self) -> Result<()>;

    /// Reduces `buffer` over all ranks, in place.
    ///
    /// # Errors
    /// [`crate::CommError`]; it names the peer that is gone or late, where the backend knows it: NCCL and
    /// MPI without shared memory do not, and the launcher finds out.
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

    /// Leaves in this rank's chunk of `buffer` its reduction over all ranks.
    ///
    /// # Errors
    /// As [`Self::all_reduce`].
    fn reduce_scatter(&self, buffer: BufferMut<'_>, op: ReduceOp) -> Result<()> {
        run(self, Collective::ReduceScatter(op), buffer)
    }

    /// Fills every chunk of `buffer` with the one of the rank that it belongs to.
    ///
    /// # Errors
    /// As [`Self::all_reduce`].
    fn all_gather(&self, buffer: BufferMut<'_>) -> Result<()> {
        run(self, Collective::AllGather, buffer)
    }

    /// Returns when every rank has called it.
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

/// Refuses what no backend does, before a sequence number is spent on it.
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
