//! Saving on a disk that may be full. A checkpoint that cannot be written does not end the run: training
//! goes on without it, and the last checkpoint is retried until there is room or a time limit is reached.

use std::thread;
use std::time::{Duration, Instant};

use comm::Communicator;
use job::config;
use tch::Device;
use tracing::{info, warn};

use crate::checkpoint::CheckpointError;
use crate::collective::any_rank;
use crate::metrics::MetricsError;
use crate::rank_0::on_rank_0;
use crate::{Result, TrainError};

/// Back-off between two attempts to write: the first pause, which doubles each time, and the longest.
const BACK_OFF: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(60)];

/// Interval at which a waiting rank 0 checks whether it was asked to stop.
const STOP_POLL_INTERVAL: Duration = Duration::from_millis(100);

/// What to do when the disk refuses a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnWriteError {
    /// Training goes on, and the end of the next epoch retries.
    GoOn,
    /// Retry for `checkpoint.retry_minutes` or until rank 0 is asked to stop; then the run ends with the
    /// error.
    Wait,
    /// The run ends with the error.
    End,
}

/// Callbacks while rank 0 waits for its disk.
pub struct Waiting<'a> {
    /// Heartbeat to the launcher, called repeatedly on all ranks.
    pub beat: &'a dyn Fn(),
    /// Returns whether rank 0 was asked to stop. The launcher asks all ranks.
    pub asked_to_stop: &'a dyn Fn() -> bool,
}

/// Saves, and remembers whether the newest checkpoint is still to be written.
pub struct Saver {
    retry_for: Duration,
    is_behind: bool,
}

impl Saver {
    /// Creates a saver for a run that is not behind.
    pub const fn new(config: &config::Checkpoint) -> Self {
        Self { retry_for: Duration::from_secs(config.retry_minutes * 60), is_behind: false }
    }

    /// Returns whether the disk has refused the newest checkpoint. The same on all ranks.
    pub const fn is_behind(&self) -> bool {
        self.is_behind
    }

    /// Has rank 0 call `write`, which writes a checkpoint or pending records, and retries as `on_write_error`
    /// says. Collective.
    ///
    /// # Errors
    /// Those of `write`, except for a disk's with [`OnWriteError::GoOn`]; when a peer is gone or late.
    pub fn save(
        &mut self,
        communicator: &dyn Communicator,
        device: Device,
        on_write_error: OnWriteError,
        waiting: &Waiting<'_>,
        mut write: impl FnMut() -> Result<()>,
    ) -> Result<()> {
        let was_behind = self.is_behind;
        let retry_for = match on_write_error {
            OnWriteError::Wait => self.retry_for,
            OnWriteError::GoOn | OnWriteError::End => Duration::ZERO,
        };
        let written = on_rank_0(communicator, device, waiting.beat, || {
            let error = match retry(retry_for, waiting, &mut write) {
                Ok(has_waited) => {
                    if has_waited || was_behind {
                        info!("saving works again");
                    }
                    return Ok(true);
                }
                Err(error) if is_io_error(&error) && on_write_error == OnWriteError::GoOn => error,
                Err(error) => return Err(error),
            };
            warn!(
                "not saved: {error}; training goes on, and saving is tried again after the next \
                 epoch"
            );
            Ok(false)
        })?;
        self.is_behind = !any_rank(communicator, device, written == Some(true))?;
        Ok(())
    }
}

/// Calls `write` at least once, and retries errors of the disk for `retry_for` or until asked to stop.
/// Returns whether a retry was necessary.
fn retry(
    retry_for: Duration,
    waiting: &Waiting<'_>,
    write: &mut dyn FnMut() -> Result<()>,
) -> Result<bool> {
    let started = Instant::now();
    let [mut pause, longest] = BACK_OFF;
    let mut tries = 0;
    loop {
        let ended = write();
        let left = retry_for.saturating_sub(started.elapsed());
        let error = match ended {
            Ok(()) => return Ok(tries > 0),
            Err(error) if is_io_error(&error) && !left.is_zero() => error,
            Err(error) => return Err(error),
        };
        if (waiting.asked_to_stop)() {
            return Err(error);
        }
        warn!(
            "not saved yet: {error}; trying again for {:.0} minutes, or until the run is asked to \
             stop",
            left.as_secs_f64() / 60.0
        );
        let next = Instant::now() + pause.min(left);
        while Instant::now() < next && !(waiting.asked_to_stop)() {
            (waiting.beat)();
            thread::sleep(STOP_POLL_INTERVAL);
        }
        pause = (2 * pause).min(longest);
        tries += 1;
    }
}

/// Returns whether the error is one of file I/O, which a retry may cure, and not, for example, an invalid
/// tensor.
fn is_io_error(error: &TrainError) -> bool {
    matches!(
        error,
        TrainError::Checkpoint(CheckpointError::Io { .. })
            | TrainError::Metrics(MetricsError::Write { .. })
    )
}
