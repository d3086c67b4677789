//! Memory that a communicator can reduce without a copy.

use comm::Communicator;
use tch::{Device, Kind, Tensor};

use crate::{Result, TrainError};

/// Allocates `[len]` f32 zeros on the device, in memory that the communicator can reduce without a copy if
/// it has such memory. Collective.
pub(crate) fn shared_f32(
    len: usize,
    device: Device,
    communicator: &dyn Communicator,
) -> Result<Tensor> {
    if device == Device::Cpu
        && let Some(memory) = communicator.alloc_shared(len * size_of::<f32>())?
    {
        return Ok(torch_ext::tensor_in_shared_memory(memory, len)?);
    }
    Tensor::f_zeros([len as i64], (Kind::Float, device)).map_err(TrainError::from)
}

/// Allocates `[len]` bf16 zeros like [`shared_f32`]. Collective.
pub(crate) fn shared_bf16(
    len: usize,
    device: Device,
    communicator: &dyn Communicator,
) -> Result<Tensor> {
    let memory = shared_f32(len.div_ceil(2), device, communicator)?;
    Ok(memory.f_view_dtype(Kind::BFloat16)?.narrow(0, 0, len as i64))
}
