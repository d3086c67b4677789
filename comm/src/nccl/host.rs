//! Barriers, and collectives on host memory such as sums of losses, staged on the device.

use std::ptr::NonNull;
use std::sync::Arc;

use nccl_rs::cuda::{Event, Memory};

use super::Shared;
use crate::communicator::Pending;
use crate::{Collective, CommError, DType, RawBuffer, ReduceOp, Result};

/// Handle of a collective whose result is copied back to the host.
pub(super) struct HostWork {
    shared: Arc<Shared>,
    done: Arc<Event>,
    sequence: u64,
    buffer: RawBuffer,
    /// Page-locked copy of the buffer, from and to which the device copies; holds the result once `done` is
    /// reached.
    pinned: Memory,
    _on_device: Memory,
}

impl HostWork {
    pub(super) fn start(
        shared: &Arc<Shared>,
        collective: Collective,
        buffer: RawBuffer,
        sequence: u64,
    ) -> Result<Self> {
        let op = collective.name();
        let failed = |error| shared.fail(shared.error(op, sequence, &error));
        let (pinned, on_device) = allocate(shared, &buffer).map_err(failed)?;
        // SAFETY: the caller of `start` keeps the buffer; the pinned memory is as long.
        unsafe {
            let to = pinned.start().cast::<u8>();
            std::ptr::copy_nonoverlapping(buffer.ptr.as_ptr(), to, buffer.size_bytes());
        }
        let queued = queue(shared, collective, &buffer, &pinned, &on_device);
        let done = shared.watch_flight(op, sequence, queued)?;
        let shared = Arc::clone(shared);
        Ok(Self { shared, done, sequence, buffer, pinned, _on_device: on_device })
    }
}

/// Returns the collective to queue and its buffer on the device; a barrier becomes the sum of one ignored
/// element.
fn staged(
    collective: Collective,
    buffer: &RawBuffer,
    on_device: &Memory,
) -> (Collective, RawBuffer) {
    let ptr = NonNull::new(on_device.start().cast()).unwrap_or(buffer.ptr);
    match collective {
        Collective::Barrier => {
            let one = RawBuffer { ptr, len: 1, dtype: DType::F32, memory: buffer.memory };
            (Collective::AllReduce(ReduceOp::Sum), one)
        }
        _ => (collective, RawBuffer { ptr, ..*buffer }),
    }
}

fn allocate(shared: &Shared, buffer: &RawBuffer) -> nccl_rs::Result<(Memory, Memory)> {
    let _guard = shared.cuda.use_device(shared.device)?;
    let len_bytes = buffer.size_bytes().max(DType::F32.size_bytes());
    Ok((shared.cuda.pinned_memory(len_bytes)?, shared.cuda.device_memory(len_bytes)?))
}

fn queue(
    shared: &Shared,
    collective: Collective,
    buffer: &RawBuffer,
    pinned: &Memory,
    on_device: &Memory,
) -> nccl_rs::Result<Event> {
    let _guard = shared.cuda.use_device(shared.device)?;
    let (len_bytes, stream) = (buffer.size_bytes(), &shared.stream);
    let (collective, staged) = staged(collective, buffer, on_device);
    // SAFETY: both memories are this long and live in the work, which is not dropped before the
    // stream has come to its event; the stream is the communicator's own.
    unsafe {
        shared.cuda.copy(on_device.start(), pinned.start(), len_bytes, stream)?;
        shared.queue(collective, &staged)?;
        shared.cuda.copy(pinned.start(), on_device.start(), len_bytes, stream)?;
        shared.cuda.record(stream.handle())
    }
}

impl Pending for HostWork {
    fn wait(&mut self) -> Result<()> {
        let reached = || {
            let is_reached = self.done.is_reached()?;
            if is_reached {
                // A kernel also ends when NCCL has given up on the communicator.
                self.shared.comm.state()?;
            }
            Ok(is_reached)
        };
        self.shared.watched.wait_for(self.sequence, reached, |error| -> CommError {
            self.shared.error("wait", self.sequence, &error)
        })?;
        // SAFETY: the pinned memory is as long as the buffer, which the caller of `start` keeps.
        unsafe {
            let from = self.pinned.start().cast::<u8>();
            std::ptr::copy_nonoverlapping(from, self.buffer.ptr.as_ptr(), self.buffer.size_bytes());
        }
        Ok(())
    }
}
