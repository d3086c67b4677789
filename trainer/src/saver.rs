//! A disk that does not take a checkpoint does not end the run: training goes on without it, and what is written at
//! the end is tried again until there is room.

use std::thread;
use std::time::{Duration, Instant};

use comm::Communicator;
use job::config;
use tch::Device;
use tracing::{info, warn};

use crate::checkpoint::CheckpointError;
use crate::metrics::MetricsError;
use crate::patience::{any_rank, on_rank_0};
use crate::{Result, TrainError};

/// Between two tries: at first, and at most.
const PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(60)];

/// How often somebody who waits looks whether he shall stop.
const LOOK: Duration = Duration::from_millis(100);

/// What is done where the disk refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IfRefused {
    /// Training goes on, and the end of the next epoch tries again.
    GoOn,
    /// It is tried again for `checkpoint.retry_minutes`, or until somebody asks to stop.
    Wait,
    /// The run ends.
    End,
}

/// What is done while rank 0 waits for its disk.
pub struct Waiting<'a> {
    /// Called now and then, on all ranks.
    pub beat: &'a dyn Fn(),
    /// Whether rank 0 was asked to stop: the launcher asks all.
    pub asked_to_stop: &'a dyn Fn() -> bool,
}

/// Saves, and knows whether that is overdue.
pub struct Saver {
    retry_for: Duration,
    is_behind: bool,
}

impl Saver {
    /// For a run with nothing to save yet.
    pub const fn new(config: &config::Checkpoint) -> Self {
        Self { retry_for: Duration::from_secs(config.retry_minutes * 60), is_behind: false }
    }

    /// Whether the disk has refused the newest checkpoint; alike on all ranks.
    pub const fn is_behind(&self) -> bool {
        self.is_behind
    }

    /// Has rank 0 `write` a checkpoint, or the records that are kept. Collective.
    ///
    /// # Errors
    /// Those of `write`, but for a disk's where training goes on; when a peer is gone or late.
    pub fn save(
        &mut self,
        communicator: &dyn Communicator,
        device: Device,
        if_refused: IfRefused,
        waiting: &Waiting<'_>,
        mut write: impl FnMut() -> Result<()>,
    ) -> Result<()> {
        let was_behind = self.is_behind;
        let retry_for = match if_refused {
            IfRefused::Wait => self.retry_for,
            IfRefused::GoOn | IfRefused::End => Duration::ZERO,
        };
        let written = on_rank_0(communicator, device, waiting.beat, || {
            let error = match patiently(retry_for, waiting, &mut write) {
                Ok(has_waited) => {
                    if has_waited || was_behind {
                        info!("the disk takes what is saved again");
                    }
                    return Ok(true);
                }
                Err(error) if is_the_disks(&error) && if_refused == IfRefused::GoOn => error,
                Err(error) => return Err(error),
            };
            warn!(
                "not saved: {error}; training goes on, and the end of the next epoch tries again"
            );
            Ok(false)
        })?;
        self.is_behind = !any_rank(communicator, device, written == Some(true))?;
        Ok(())
    }
}

/// Tries `write` for so long, and at least once. Whether it has waited.
fn patiently(
    retry_for: Duration,
    waiting: &Waiting<'_>,
    write: &mut dyn FnMut() -> Result<()>,
) -> Result<bool> {
    let started = Instant::now();
    let [mut pause, longest] = PAUSES;
    let mut tries = 0;
    loop {
        let ended = write();
        let left = retry_for.saturating_sub(started.elapsed());
        let error = match ended {
            Ok(()) => return Ok(tries > 0),
            Err(error) if is_the_disks(&error) && !left.is_zero() => error,
            Err(error) => return Err(error),
        };
        if (waiting.asked_to_stop)() {
            return Err(error);
        }
        warn!(
            "not saved yet: {error}; it is tried again for {:.0} minutes, or until the run is asked to stop",
            left.as_secs_f64() / 60.0
        );
        let next = Instant::now() + pause.min(left);
        while Instant::now() < next && !(waiting.asked_to_stop)() {
            (waiting.beat)();
            thread::sleep(LOOK);
        }
        pause = (2 * pause).min(longest);
        tries += 1;
    }
}

/// Whether a file could not be written, and not, for example, a tensor that cannot be.
fn is_the_disks(error: &TrainError) -> bool {
    matches!(
        error,
        TrainError::Checkpoint(CheckpointError::Io { .. })
            | TrainError::Metrics(MetricsError::Write { .. })
    )
}
