//! Collectives among the ranks of one MPI communicator, as non-blocking operations that are polled.

use std::collections::VecDeque;
use std::ffi::{c_int, c_void};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mpi::ffi;

use super::abort_channel::AbortChannel;
use super::handle::Comm;
use super::ops::{Extremes, moved_type};
use super::request::{At, Request, checked};
use crate::communicator::chunk_range;
use crate::reduce;
use crate::shm::Shm;
use crate::{CommError, DType, RawBuffer, ReduceOp, Result};

/// Added to the timeout of waits between machines, so that waits in shared memory, which can name the missing
/// rank, time out first.
const INTER_NODE_EXTRA_TIMEOUT: Duration = Duration::from_secs(5);

/// Elements of a long buffer that one call of MPI reduces.
const PIECE_ELEMENTS: usize = 64 * 1024;

/// Calls per buffer that are under way at once. Two are as fast as one over 1 Gb/s and faster over 10 and 40
/// Gb/s; four are slower than two over all of these.
const IN_FLIGHT: usize = 2;

unsafe extern "C" {
    safe fn lockstep_mpi_in_place() -> *mut c_void;
}

/// State that all groups of a job share.
pub(super) struct Common {
    pub(super) extremes: Extremes,
    pub(super) abort: AbortChannel,
}

/// An MPI communicator, and this rank's place in it.
pub(super) struct Group {
    comm: Comm,
    rank: usize,
    size: usize,
    timeout: Duration,
    common: Arc<Common>,
    /// Shared-memory group of this machine, whose ranks may wait for this rank while it waits here.
    node_group: Option<Arc<Shm>>,
    /// Receive buffer for all ranks' bf16 elements of this rank's chunk, kept to be reused.
    gathered: Mutex<Vec<u16>>,
}

impl Group {
    /// `comm`: carries no other messages. `rank`: this rank's number in `comm`, of `size`. A wait takes at
    /// most `timeout`.
    pub(super) fn new(
        comm: Comm,
        rank: usize,
        size: usize,
        timeout: Duration,
        common: &Arc<Common>,
    ) -> Self {
        let common = Arc::clone(common);
        Self { comm, rank, size, timeout, common, node_group: None, gathered: Mutex::default() }
    }

    /// From now on this rank gives its machine's ranks signs of life while it waits here, and waits longer
    /// than they do in shared memory, since they can name the missing rank.
    pub(super) fn add_node_group(&mut self, node_group: &Arc<Shm>) {
        self.node_group = Some(Arc::clone(node_group));
        self.timeout += INTER_NODE_EXTRA_TIMEOUT;
    }

    fn wait(&self, request: Request, at: At) -> Result<()> {
        request.wait(at, self.timeout, || {
            if let Some(node_group) = &self.node_group {
                node_group.sign_of_life();
            }
            self.common.abort.received(at)
        })
    }

    /// Starts an operation with `start`, which gets the location for the request, and waits for it.
    ///
    /// A request that fails stays in MPI, which still has the addresses of the buffer and of `arguments`. The
    /// arguments are then leaked. The buffer is safe: MPI accesses it only during calls from this process,
    /// and after a failure this communicator makes no call but [`AbortChannel::send`].
    fn complete<A>(
        &self,
        at: At,
        arguments: A,
        start: impl FnOnce(&A, *mut ffi::MPI_Request) -> c_int,
    ) -> Result<()> {
        let mut request = Request::null();
        let ended = checked(at, start(&arguments, request.as_mut_ptr()))
            .and_then(|()| self.wait(request, at));
        if ended.is_err() {
            std::mem::forget(arguments);
        }
        ended
    }

    /// Waits until all ranks of the group have called it.
    pub(super) fn barrier(&self, at: At) -> Result<()> {
        // SAFETY: no buffer is involved.
        self.complete(at, (), |(), request| unsafe { ffi::MPI_Ibarrier(self.comm.0, request) })
    }

    pub(super) fn broadcast(&self, buffer: &RawBuffer, root: usize, at: At) -> Result<()> {
        let (len, root) = (count(buffer.len)?, count(root)?);
        // SAFETY: the caller of `start` keeps the buffer until the collective has ended.
        self.complete(at, (), |(), request| unsafe {
            let (data, dtype) = (buffer.ptr.as_ptr().cast(), moved_type(buffer.dtype));
            ffi::MPI_Ibcast(data, len, dtype, root, self.comm.0, request)
        })
    }

    pub(super) fn all_gather(&self, buffer: &RawBuffer, at: At) -> Result<()> {
        // SAFETY: as for `broadcast`; the counts and offsets outlive the request, and lie in the
        // buffer; the send arguments are ignored in place.
        self.complete(at, self.chunks(buffer.len)?, |(counts, offsets), request| unsafe {
            ffi::MPI_Iallgatherv(
                lockstep_mpi_in_place(),
                0,
                ffi::RSMPI_DATATYPE_NULL,
                buffer.ptr.as_ptr().cast(),
                counts.as_ptr(),
                offsets.as_ptr(),
                moved_type(buffer.dtype),
                self.comm.0,
                request,
            )
        })
    }

    fn chunks(&self, len: usize) -> Result<(Vec<c_int>, Vec<c_int>)> {
        let ranges = (0..self.size).map(|rank| chunk_range(len, rank, self.size));
        let pairs = ranges.map(|range| Ok((count(range.len())?, count(range.start)?)));
        Ok(pairs.collect::<Result<Vec<_>>>()?.into_iter().unzip())
    }

    /// Reduces `buffer` over all ranks. `scatters`: only this rank's chunk holds the result.
    pub(super) fn reduce(
        &self,
        buffer: &RawBuffer,
        op: ReduceOp,
        scatters: bool,
        at: At,
    ) -> Result<()> {
        if buffer.dtype != DType::Bf16 {
            return self.reduce_as_is(buffer, op, scatters, at);
        }
        self.reduce_bf16(buffer, op, at)?;
        if scatters { Ok(()) } else { self.all_gather(buffer, at) }
    }

    /// Reduces this rank's chunk. MPI has no bf16, and a user-defined operation would round each partial sum:
    /// so elements are exchanged as they are, and each rank reduces all ranks' parts of its chunk.
    fn reduce_bf16(&self, buffer: &RawBuffer, op: ReduceOp, at: At) -> Result<()> {
        let (counts, offsets) = self.chunks(buffer.len)?;
        let chunk = chunk_range(buffer.len, self.rank, self.size);
        let arriving = vec![count(chunk.len())?; self.size];
        let places = (0..self.size).map(|rank| count(rank * chunk.len()));
        let places = places.collect::<Result<Vec<_>>>()?;
        let arguments = (counts, offsets, arriving, places);
        let mut gathered = self.gathered.lock().unwrap_or_else(PoisonError::into_inner);
        gathered.resize(self.size * chunk.len(), 0);
        let (from, to) = (buffer.ptr.as_ptr(), gathered.as_mut_ptr());
        // SAFETY: as for `broadcast`; counts and offsets outlive the request, and lie in the buffer
        // and in `gathered`, which is locked.
        let ended =
            self.complete(at, arguments, |(counts, offsets, arriving, places), request| unsafe {
                let dtype = moved_type(DType::Bf16);
                ffi::MPI_Ialltoallv(
                    from.cast(),
                    counts.as_ptr(),
                    offsets.as_ptr(),
                    dtype,
                    to.cast(),
                    arriving.as_ptr(),
                    places.as_ptr(),
                    dtype,
                    self.comm.0,
                    request,
                )
            });
        if let Err(error) = ended {
            std::mem::forget(std::mem::take(&mut *gathered)); // leaked, as the arguments are in `complete`
            return Err(error);
        }
        let source = |rank| to.wrapping_add(rank * chunk.len()).cast_const().cast::<u8>();
        let sources: Vec<_> = (0..self.size).map(source).collect();
        let target = from.wrapping_add(chunk.start * DType::Bf16.size_bytes());
        // SAFETY: every source has a chunk's elements in `gathered`, and the target in the buffer.
        unsafe { reduce::reduce(DType::Bf16, op, &sources, &[target], chunk.len()) };
        Ok(())
    }

    fn reduce_as_is(&self, buffer: &RawBuffer, op: ReduceOp, scatters: bool, at: At) -> Result<()> {
        let data: *mut c_void = buffer.ptr.as_ptr().cast();
        let (dtype, mpi_op) = (moved_type(buffer.dtype), self.common.extremes.op(op, buffer.dtype));
        let mut reduced = 0..buffer.len;
        if scatters {
            let (counts, _) = self.chunks(buffer.len)?;
            // SAFETY: as for `broadcast`; the counts outlive the request and add up to the length.
            self.complete(at, counts, |counts, request| unsafe {
                let in_place = lockstep_mpi_in_place();
                let counts = counts.as_ptr();
                ffi::MPI_Ireduce_scatter(
                    in_place,
                    data,
                    counts,
                    dtype,
                    mpi_op,
                    self.comm.0,
                    request,
                )
            })?;
            reduced = chunk_range(buffer.len, self.rank, self.size);
            let element_bytes = buffer.dtype.size_bytes();
            let chunk = buffer.ptr.as_ptr().wrapping_add(reduced.start * element_bytes);
            // MPI leaves the chunk at the buffer's start.
            // SAFETY: both ranges lie in the buffer.
            unsafe { std::ptr::copy(data.cast(), chunk, reduced.len() * element_bytes) };
        } else {
            self.all_reduce_pieces(buffer, dtype, mpi_op, at)?;
        }
        if op == ReduceOp::Mean {
            self.divide(buffer, reduced);
        }
        Ok(())
    }

    /// All-reduces in pieces: on a long buffer, Open MPI's non-blocking all-reduce takes twice as long as its
    /// blocking one, and in pieces as long.
    fn all_reduce_pieces(
        &self,
        buffer: &RawBuffer,
        dtype: ffi::MPI_Datatype,
        op: ffi::MPI_Op,
        at: At,
    ) -> Result<()> {
        let mut in_flight = VecDeque::with_capacity(IN_FLIGHT);
        for start in (0..buffer.len).step_by(PIECE_ELEMENTS) {
            if in_flight.len() == IN_FLIGHT {
                self.finish_first(&mut in_flight, at)?;
            }
            let len = count(PIECE_ELEMENTS.min(buffer.len - start))?;
            let offset = start * buffer.dtype.size_bytes();
            let data = buffer.ptr.as_ptr().wrapping_add(offset).cast();
            let mut request = Request::null();
            // SAFETY: as for `broadcast`; the piece lies in the buffer.
            checked(at, unsafe {
                let (in_place, request) = (lockstep_mpi_in_place(), request.as_mut_ptr());
                ffi::MPI_Iallreduce(in_place, data, len, dtype, op, self.comm.0, request)
            })?;
            in_flight.push_back(request);
        }
        while !in_flight.is_empty() {
            self.finish_first(&mut in_flight, at)?;
        }
        Ok(())
    }

    fn finish_first(&self, in_flight: &mut VecDeque<Request>, at: At) -> Result<()> {
        match in_flight.pop_front() {
            Some(request) => self.wait(request, at),
            None => Ok(()),
        }
    }

    fn divide(&self, buffer: &RawBuffer, range: std::ops::Range<usize>) {
        let first = buffer.ptr.as_ptr().wrapping_add(range.start * buffer.dtype.size_bytes());
        // SAFETY: the caller of `start` keeps the buffer, nobody else uses it, and the range lies
        // in it.
        unsafe {
            match buffer.dtype {
                DType::F64 => std::slice::from_raw_parts_mut(first.cast::<f64>(), range.len())
                    .iter_mut()
                    .for_each(|x| *x /= self.size as f64),
                DType::F32 => std::slice::from_raw_parts_mut(first.cast::<f32>(), range.len())
                    .iter_mut()
                    .for_each(|x| *x /= self.size as f32),
                // bf16 does not come here, and means of integers are refused.
                DType::Bf16 | DType::I64 => {}
            }
        }
    }
}

/// Converts a length to `int`, the type in which MPI counts.
pub(super) fn count(len: usize) -> Result<c_int> {
    c_int::try_from(len).map_err(|_| CommError::Unsupported {
        backend: super::BACKEND,
        what: format!("move {len} elements in one collective: MPI counts to {}", c_int::MAX),
    })
}
