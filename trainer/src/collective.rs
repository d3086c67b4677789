//! Collectives over a few numbers of the host.

use comm::{Communicator, ReduceOp};
use tch::{Device, Tensor};
use torch_ext::collective::all_reduce;

use crate::Result;

/// Reduces each of `values` over all ranks and returns the results, the same on every rank. Collective; waits
/// for the device.
///
/// # Errors
/// When a peer is gone or late.
pub fn reduce_values(
    communicator: &dyn Communicator,
    device: Device,
    values: &[f64],
    op: ReduceOp,
) -> Result<Vec<f64>> {
    let mut tensor = Tensor::from_slice(values).to_device(device);
    all_reduce(communicator, &mut tensor, op)?;
    let reduced = Vec::try_from(&tensor)?;
    // On a GPU an aborted collective also ends, with the buffer unchanged.
    communicator.check()?;
    Ok(reduced)
}

/// Returns whether `mine` is true on any rank. Collective; waits for the device.
///
/// # Errors
/// When a peer is gone or late.
pub fn any_rank(communicator: &dyn Communicator, device: Device, mine: bool) -> Result<bool> {
    let ranks = reduce_values(communicator, device, &[f64::from(mine)], ReduceOp::Sum)?;
    Ok(ranks.iter().any(|ranks| *ranks > 0.0))
}
