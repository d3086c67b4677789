//! Work of rank 0 alone that may take longer than the timeout of collectives, such as disk I/O for
//! checkpoints.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use comm::Communicator;
use tch::Device;

use crate::Result;
use crate::collective::any_rank;

/// Interval of the heartbeats with which a working rank 0 keeps the others waiting. Shorter than the smallest
/// `comm.timeout_seconds`, which is one second.
const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(500);

/// Runs `work` on rank 0 and returns its result there, `None` on the other ranks. These wait as long as
/// rank 0's process lives, if necessary longer than `comm.timeout_seconds`, and call `waiting` after each
/// heartbeat. Collective.
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
        // Dropping the sender ends the heartbeats, also if `work` panics.
        let (working, ended) = channel::<()>();
        let beats = scope.spawn(move || {
            while ended.recv_timeout(HEARTBEAT_INTERVAL) == Err(RecvTimeoutError::Timeout) {
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
