//! Maps each collective to calls of NCCL, in place on device memory.

use std::ffi::c_void;

use nccl_rs::{Calls, DataType, RedOp, Result};

use super::Shared;
use crate::communicator::chunk_range;
use crate::{Collective, DType, RawBuffer, ReduceOp};

impl Shared {
    /// Queues a collective on the communicator's stream. The communicator's device must be the current one.
    pub(super) fn queue(&self, collective: Collective, buffer: &RawBuffer) -> Result<()> {
        if buffer.len == 0 {
            return Ok(());
        }
        let (data, len, dtype) = (buffer.ptr.as_ptr().cast(), buffer.len, data_type(buffer.dtype));
        let (stream, calls) = (self.stream.handle(), self.comm.calls()?);
        // SAFETY: the caller of `start` keeps the buffer until the collective has ended; the stream
        // is the communicator's own.
        unsafe {
            match collective {
                Collective::AllReduce(op) => {
                    calls.all_reduce(data, len, dtype, red_op(op), stream)?;
                }
                Collective::Broadcast { root } => {
                    calls.broadcast(data, len, dtype, root, stream)?;
                }
                Collective::ReduceScatter(op) => self.reduce_scatter(&calls, buffer, red_op(op))?,
                Collective::AllGather => self.all_gather(&calls, buffer)?,
                Collective::Barrier => {}
            }
        }
        drop(calls);
        // An event covers a collective only once it has been launched.
        self.comm.settle("launching a collective", self.timeout)
    }

    /// Returns the address and the number of elements of the chunk of `rank`.
    fn chunk(&self, buffer: &RawBuffer, rank: usize) -> (*mut c_void, usize) {
        let range = chunk_range(buffer.len, rank, self.world_size);
        let offset = range.start * buffer.dtype.size_bytes();
        (buffer.ptr.as_ptr().wrapping_add(offset).cast(), range.len())
    }

    /// # Safety
    /// As [`Calls`]'s collectives.
    unsafe fn reduce_scatter(
        &self,
        calls: &Calls<'_>,
        buffer: &RawBuffer,
        op: RedOp,
    ) -> Result<()> {
        let (dtype, stream) = (data_type(buffer.dtype), self.stream.handle());
        if buffer.len.is_multiple_of(self.world_size) {
            let (own, count) = self.chunk(buffer, self.rank);
            let all = buffer.ptr.as_ptr().cast_const().cast();
            // SAFETY: the caller's promise; `own` is this rank's part of `all`.
            return unsafe { calls.reduce_scatter(all, own, count, dtype, op, stream) };
        }
        self.for_each_chunk(calls, buffer, |data, count, root| {
            // SAFETY: the caller's promise; chunks lie in the buffer.
            unsafe { calls.reduce(data, count, dtype, op, root, stream) }
        })
    }

    /// # Safety
    /// As [`Calls`]'s collectives.
    unsafe fn all_gather(&self, calls: &Calls<'_>, buffer: &RawBuffer) -> Result<()> {
        let (dtype, stream) = (data_type(buffer.dtype), self.stream.handle());
        if buffer.len.is_multiple_of(self.world_size) {
            let (own, count) = self.chunk(buffer, self.rank);
            let all = buffer.ptr.as_ptr().cast();
            // SAFETY: the caller's promise; `own` is this rank's part of `all`.
            return unsafe { calls.all_gather(own, all, count, dtype, stream) };
        }
        self.for_each_chunk(calls, buffer, |data, count, root| {
            // SAFETY: the caller's promise; chunks lie in the buffer.
            unsafe { calls.broadcast(data, count, dtype, root, stream) }
        })
    }

    /// Makes one call per rank in a group, for chunks of different lengths: NCCL's own collectives need equal
    /// ones.
    fn for_each_chunk(
        &self,
        calls: &Calls<'_>,
        buffer: &RawBuffer,
        mut call: impl FnMut(*mut c_void, usize, usize) -> Result<()>,
    ) -> Result<()> {
        calls.group(|| {
            for root in 0..self.world_size {
                let (data, count) = self.chunk(buffer, root);
                if count > 0 {
                    call(data, count, root)?;
                }
            }
            Ok(())
        })
    }
}

fn data_type(dtype: DType) -> DataType {
    match dtype {
        DType::F32 => DataType::Float32,
        DType::F64 => DataType::Float64,
        DType::Bf16 => DataType::Bfloat16,
        DType::I64 => DataType::Int64,
    }
}

fn red_op(op: ReduceOp) -> RedOp {
    match op {
        ReduceOp::Sum => RedOp::Sum,
        ReduceOp::Mean => RedOp::Avg,
        ReduceOp::Max => RedOp::Max,
        ReduceOp::Min => RedOp::Min,
    }
}
