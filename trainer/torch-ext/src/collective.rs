//! Collective operations on tensors.

use std::ffi::c_void;
use std::ptr::NonNull;

use comm::{BufferMut, CommError, Communicator, DType, Memory, RawBuffer, ReduceOp};
use tch::{Device, Kind, Tensor};

use crate::cuda_stream;

/// Reduces a contiguous tensor over all ranks, in place.
///
/// # Errors
/// See [`Communicator::all_reduce`].
///
/// # Panics
/// When the tensor is not contiguous, or of a dtype that collectives do not support.
pub fn all_reduce(
    communicator: &dyn Communicator,
    tensor: &mut Tensor,
    op: ReduceOp,
) -> comm::Result<()> {
    communicator.all_reduce(buffer(tensor)?, op)
}

/// An all-reduce in progress. Dropping it waits for its completion.
#[must_use = "a collective is complete only after `wait`"]
pub struct TensorWork {
    work: comm::Work,
    /// Keeps the memory alive that the collective reads and writes, even if the `TensorWork` is forgotten
    /// (`mem::forget`).
    _tensor: Tensor,
}

impl TensorWork {
    /// Waits for completion: on the CPU until the result is in memory, on a GPU until work that is queued
    /// later is ordered after the collective.
    ///
    /// # Errors
    /// See [`Communicator::all_reduce`].
    pub fn wait(self) -> comm::Result<()> {
        self.work.wait()
    }
}

/// Starts to reduce a contiguous tensor over all ranks, in place, and returns at once. Until completion
/// nothing else may use its elements.
///
/// # Errors
/// When the communicator has failed.
///
/// # Panics
/// As [`all_reduce`].
pub fn start_all_reduce(
    communicator: &dyn Communicator,
    mut tensor: Tensor,
    op: ReduceOp,
) -> comm::Result<TensorWork> {
    let raw = buffer(&mut tensor)?.raw();
    // SAFETY: the tensor keeps its memory for as long as the work exists, and dropping the work waits for
    // completion.
    let work = unsafe { communicator.start(comm::Collective::AllReduce(op), raw) }?;
    Ok(TensorWork { work, _tensor: tensor })
}

/// Copies a contiguous tensor from rank `root` to every rank.
///
/// # Errors
/// See [`Communicator::broadcast`].
///
/// # Panics
/// As [`all_reduce`].
pub fn broadcast(
    communicator: &dyn Communicator,
    tensor: &mut Tensor,
    root: usize,
) -> comm::Result<()> {
    communicator.broadcast(buffer(tensor)?, root)
}

/// Makes the communicator watch the collectives that a [`crate::CudaGraph`] contains; to be called after each
/// replay of the graph on `device`.
///
/// # Errors
/// When the communicator has failed.
pub fn watch_replay(communicator: &dyn Communicator, device: Device) -> comm::Result<()> {
    let Device::Cuda(device) = device else { return Ok(()) };
    let stream = stream_of(device)?;
    // SAFETY: libtorch's own stream of the device.
    unsafe { communicator.watch_replay(stream) }
}

fn stream_of(device: usize) -> comm::Result<*mut c_void> {
    cuda_stream(device)
        .map_err(|error| CommError::Connect { backend: "nccl", reason: error.to_string() })
}

/// Gathers a contiguous tensor in place: each rank contributes its own part
/// ([`comm::communicator::chunk_range`]), and every rank receives all parts.
///
/// # Errors
/// See [`Communicator::all_gather`].
///
/// # Panics
/// As [`all_reduce`].
pub fn all_gather(communicator: &dyn Communicator, tensor: &mut Tensor) -> comm::Result<()> {
    communicator.all_gather(buffer(tensor)?)
}

fn buffer(tensor: &mut Tensor) -> comm::Result<BufferMut<'_>> {
    assert!(tensor.is_contiguous(), "a collective needs a range of memory, not a strided tensor");
    let dtype = match tensor.kind() {
        Kind::Float => DType::F32,
        Kind::Double => DType::F64,
        Kind::BFloat16 => DType::Bf16,
        Kind::Int64 => DType::I64,
        other => panic!("{other:?} is not communicated"),
    };
    let memory = match tensor.device() {
        Device::Cuda(device) => Memory::Cuda { device, stream: stream_of(device)? },
        _ => Memory::Host,
    };
    let ptr = NonNull::new(tensor.data_ptr().cast()).unwrap_or(NonNull::dangling());
    let raw = RawBuffer { ptr, len: tensor.numel(), dtype, memory };
    // SAFETY: the tensor is contiguous and borrowed mutably for as long as the buffer lives; libtorch queues
    // its work on the stream that `memory` names.
    Ok(unsafe { BufferMut::from_raw(raw) })
}
