//! Work of rank 0 alone that may take any time, as the disk likes: checkpoints are read and written there.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use comm::{Communicator, ReduceOp};
use tch::{Device, Kind, Tensor};

use crate::Result;

/// How often rank 0 lets the others know that it is at work. The least that `comm.timeout_seconds` can be is
/// longer.
const BEAT: Duration = Duration::from_millis(500);

/// Runs `work` on rank 0, and returns its result there. The others wait, longer than `comm.timeout_seconds` where it must
/// be, as long as rank 0's process lives, and call `waiting` now and then. Collective.
///
/// # Errors
/// Those of `work`; when a peer is gone or late.
pub fn on_rank_0<T>(
    communicator: &dyn Communicator,
    device: Device,
    waiting: impl Fn(),
    work: impl FnOnce() -> Result<T>,
) -> Result<Option<T>> {
    if communicator.world_size() == 1 {
        return work().map(Some);
    }
    if communicator.rank() != 0 {
        while any_rank(communicator, device, false)? {
            waiting();
        }
        return Ok(None);
    }
    let result = thread::scope(|scope| {
        // The sender is dropped when the work ends, also by a panic.
        let (working, ended) = channel::<()>();
        let beats = scope.spawn(move || {
            while ended.recv_timeout(BEAT) == Err(RecvTimeoutError::Timeout) {
                any_rank(communicator, device, true)?;
            }
            Result::Ok(())
        });
        let result = work();
        drop(working);
        let beats = beats.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        result.and_then(|value| beats.map(|()| value))
    })?;
    any_rank(communicator, device, false)?;
    Ok(Some(result))
}

/// Whether it is so on any rank; `mine`: on this one. Collective.
///
/// # Errors
/// When a peer is gone or late.
pub fn any_rank(communicator: &dyn Communicator, device: Device, mine: bool) -> Result<bool> {
    let mut ranks = Tensor::from_slice(&[f64::from(mine)]).to_kind(Kind::Double).to_device(device);
    torch_ext::collective::all_reduce(communicator, &mut ranks, ReduceOp::Sum)?;
    let any = ranks.double_value(&[0]) > 0.0;
    // On a device, an aborted collective ends too, and leaves what was there.
    communicator.check()?;
    Ok(any)
}
