//! Collectives on tensors.

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
/// When the tensor is not contiguous or of a kind that is not communicated.
pub fn all_reduce(
    communicator: &dyn Communicator,
    tensor: &mut Tensor,
    op: ReduceOp,
) -> comm::Result<()> {
    communicator.all_reduce(buffer(tensor)?, op)
}

/// A reduction under way. Dropping it waits for it.
#[must_use = "a collective is complete only after `wait`"]
pub struct TensorWork {
    work: comm::Work,
    /// Keeps the memory alive that the collective reads and writes, also when this is forgotten.
    _tensor: Tensor,
}

impl TensorWork {
    /// Waits for the end: on the CPU until the result is there, on a device until work queued later
    /// will see it.
    ///
    /// # Errors
    /// See [`Communicator::all_reduce`].
    pub fn wait(self) -> comm::Result<()> {
        self.work.wait()
    }
}

/// Starts to reduce a contiguous tensor over all ranks, in place. Until the end nobody else may use
/// its elements.
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
    // SAFETY: the tensor keeps its memory for as long as the work exists, and dropping that waits.
    let work = unsafe { communicator.start(comm::Collective::AllReduce(op), raw) }?;
    Ok(TensorWork { work, _tensor: tensor })
}

/// Copies a contiguous tensor of `root` to every rank.
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

/// Has collectives looked after that a [`crate::CudaGraph`] contains, which was just replayed on `device`.
///
/// # Errors
/// When the communicator has failed.
pub fn replayed(communicator: &dyn Communicator, device: Device) -> comm::Result<()> {
    let Device::Cuda(device) = device else { return Ok(()) };
    let stream = stream_of(device)?;
    // SAFETY: libtorch's own stream of the device.
    unsafe { communicator.replayed(stream) }
}

fn stream_of(device: usize) -> comm::Result<*mut c_void> {
    cuda_stream(device)
        .map_err(|error| CommError::Connect { backend: "nccl", reason: error.to_string() })
}

/// Fills every rank's part ([`comm::communicator::chunk_range`]) of a contiguous tensor with that
/// rank's, in place.
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
    // SAFETY: the tensor is contiguous and borrowed mutably as long as the buffer lives; libtorch
    // queues its work on the stream that `memory` names.
    Ok(unsafe { BufferMut::from_raw(raw) })
}
