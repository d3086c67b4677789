//! What the ranks of one MPI communicator do together: non-blocking calls that are polled.

use std::collections::VecDeque;
use std::ffi::{c_int, c_void};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mpi::ffi;

use super::handle::Comm;
use super::mail::AbortMail;
use super::ops::{Extremes, moved_type};
use super::request::{At, Request, checked};
use crate::communicator::chunk_range;
use crate::reduce;
use crate::shm::Shm;
use crate::{CommError, DType, RawBuffer, ReduceOp, Result};

/// How much longer a rank waits for other machines than for those of its own.
const NAMING_TIME: Duration = Duration::from_secs(5);

/// Elements of a long buffer that one MPI call reduces.
const PIECE_ELEMENTS: usize = 64 * 1024;

/// Such calls under way at once. Two are as fast as one over 1 Gb/s and faster over 10 and 40; four are slower than
/// two over all of them.
const IN_FLIGHT: usize = 2;

unsafe extern "C" {
    safe fn lockstep_mpi_in_place() -> *mut c_void;
}

/// What all groups of a job use.
pub(super) struct Common {
    pub(super) extremes: Extremes,
    pub(super) mail: AbortMail,
}

/// A communicator of MPI's, and this rank's place in it.
pub(super) struct Group {
    comm: Comm,
    rank: usize,
    size: usize,
    timeout: Duration,
    common: Arc<Common>,
    /// Ranks of this machine that may wait for this one while it waits here.
    mates: Option<Arc<Shm>>,
    /// All ranks' bf16 elements of this rank's chunk, kept for the next one.
    gathered: Mutex<Vec<u16>>,
}

impl Group {
    /// `comm`: of MPI's ranks this one is `rank`; nobody else's messages travel in it. A wait lasts for
    /// `timeout` at most.
    pub(super) fn new(
        comm: Comm,
        rank: usize,
        size: usize,
        timeout: Duration,
        common: &Arc<Common>,
    ) -> Self {
        let common = Arc::clone(common);
        Self { comm, rank, size, timeout, common, mates: None, gathered: Mutex::default() }
    }

    /// From now on, those of this machine hear that this rank is alive while it waits here, and it waits longer
    /// than they do in shared memory: they know the name of who is missing.
    pub(super) fn add_mates(&mut self, mates: &Arc<Shm>) {
        self.mates = Some(Arc::clone(mates));
        self.timeout += NAMING_TIME;
    }

    fn wait(&self, request: Request, at: At) -> Result<()> {
        request.wait(at, self.timeout, || {
            if let Some(mates) = &self.mates {
                mates.sign_of_life();
            }
            self.common.mail.received(at)
        })
    }

    /// Starts an operation through `start`, which gets the place for its request, and waits.
    ///
    /// A request that fails stays in MPI, which still has the addresses of the buffer and of `arguments`. The latter
    /// are then never freed. The buffer MPI touches only in calls of this process, of which this communicator makes no
    /// other after a failure but [`AbortMail::send`].
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

    /// Waits for everybody.
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

    /// `scatters`: leaves this rank's chunk alone reduced.
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

    /// Leaves this rank's chunk reduced. MPI has no bf16, and an operation of ours would round each
    /// sum: so elements travel as they are, and each rank reduces everybody's part of its chunk.
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
            std::mem::forget(std::mem::take(&mut *gathered)); // as the arguments
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

    /// Open MPI's non-blocking all-reduce takes twice as long as its blocking one on a long buffer,
    /// and as long in pieces.
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

/// MPI counts in `int`.
pub(super) fn count(len: usize) -> Result<c_int> {
    c_int::try_from(len).map_err(|_| CommError::Unsupported {
        backend: super::BACKEND,
        what: format!("move {len} elements in one collective: MPI counts to {}", c_int::MAX),
    })
}
