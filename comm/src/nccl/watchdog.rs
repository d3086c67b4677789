//! The collectives under way, and the watchdog thread, which aborts the communicator when one of them times
//! out or NCCL has failed.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nccl_rs::cuda::Event;

use super::{Shared, timeout_error};
use crate::{CommError, Result};

/// Interval at which the watchdog checks the collectives under way.
const TICK: Duration = Duration::from_millis(20);

/// Interval at which a host thread that waits for a result checks whether it is there.
const HOST_TICK: Duration = Duration::from_micros(50);

/// A queued collective, and the event of its end.
pub(super) struct InFlight {
    pub(super) op: &'static str,
    pub(super) sequence: u64,
    pub(super) done: Arc<Event>,
}

/// The collectives under way, and the outcome of those that have ended.
#[derive(Default)]
pub(super) struct Watched {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    started: u64,
    /// Number of collectives that have completed, in order.
    ended: u64,
    flights: VecDeque<InFlight>,
    /// Time at which the first of `flights` became the first.
    first_since: Option<Instant>,
    failed: Option<CommError>,
    finalized: Option<CommError>,
    leaving: bool,
}

impl Watched {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the sequence number of the next collective.
    pub(super) fn next_sequence(&self) -> Result<u64> {
        let mut state = self.lock();
        if let Some(error) = state.failed.as_ref().or(state.finalized.as_ref()) {
            return Err(error.clone());
        }
        state.started += 1;
        Ok(state.started - 1)
    }

    /// Returns the sequence number of the collective that was started last, or 0 if there was none.
    pub(super) fn newest(&self) -> u64 {
        self.lock().started.saturating_sub(1)
    }

    pub(super) fn add(&self, flight: InFlight) {
        let mut state = self.lock();
        if state.flights.is_empty() {
            state.first_since = Some(Instant::now());
        }
        state.flights.push_back(flight);
        self.changed.notify_all();
    }

    /// Returns the communicator's failure, unless this collective completed before it.
    pub(super) fn outcome(&self, sequence: u64) -> Result<()> {
        let state = self.lock();
        match &state.failed {
            Some(error) if state.ended <= sequence => Err(error.clone()),
            _ => Ok(()),
        }
    }

    /// Returns whether the watchdog has seen this collective complete.
    fn has_ended(&self, sequence: u64) -> bool {
        self.lock().ended > sequence
    }

    /// Blocks the host thread until `reached` returns true; `failed` converts an error of `reached`.
    pub(super) fn wait_for(
        &self,
        sequence: u64,
        reached: impl Fn() -> nccl_rs::Result<bool>,
        failed: impl Fn(nccl_rs::Error) -> CommError,
    ) -> Result<()> {
        loop {
            // Checked first: an aborted kernel also reaches its event, without a valid result.
            self.outcome(sequence)?;
            match reached() {
                Ok(true) => return self.outcome(sequence),
                Ok(false) => {}
                // The watchdog's record takes precedence: that it saw the collective complete, or why it
                // failed.
                Err(_) if self.has_ended(sequence) => return Ok(()),
                Err(error) => {
                    self.outcome(sequence)?;
                    return Err(failed(error));
                }
            }
            std::thread::sleep(HOST_TICK);
        }
    }

    /// Waits until the watchdog has seen all collectives complete.
    pub(super) fn wait_until_idle(&self) -> Result<()> {
        let mut state = self.lock();
        while state.failed.is_none() && !state.flights.is_empty() {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.failed.clone().map_or(Ok(()), Err)
    }

    pub(super) fn is_finalized(&self) -> bool {
        self.lock().finalized.is_some()
    }

    /// Makes every collective that is started from now on fail with `reason`.
    pub(super) fn set_finalized(&self, reason: CommError) {
        self.lock().finalized = Some(reason);
    }

    /// Makes the watchdog thread exit.
    pub(super) fn leave(&self) {
        self.lock().leaving = true;
        self.changed.notify_all();
    }
}

impl Shared {
    /// Aborts the communicator: all collectives under way and to come fail. Returns the failure that they
    /// report, the first one.
    pub(super) fn fail(&self, error: CommError) -> CommError {
        let first = self.watched.lock().failed.get_or_insert(error).clone();
        self.watched.changed.notify_all();
        // An error of the abort would only hide the reason.
        let _ = self.comm.abort();
        first
    }

    /// Main loop of the watchdog thread.
    pub(super) fn watch(&self) {
        // Where this fails, so does the first query of an event.
        let _ = self.cuda.set_device(self.device);
        let mut state = self.watched.lock();
        while !state.leaving {
            let idle = state.flights.is_empty() || state.failed.is_some();
            let verdict = if idle { None } else { self.look(&mut state) };
            if let Some(error) = verdict {
                drop(state);
                self.fail(error);
                state = self.watched.lock();
            } else if idle {
                state = self.watched.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            } else {
                let waited = self.watched.changed.wait_timeout(state, TICK);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
        }
    }

    /// Records the collectives that have completed; returns the reason to abort the others, if there is one.
    fn look(&self, state: &mut State) -> Option<CommError> {
        while let Some(InFlight { op, sequence, done }) = state.flights.front() {
            match done.is_reached() {
                Ok(true) => {
                    // A kernel also ends when NCCL has given up on the communicator.
                    if let Err(error) = self.comm.state() {
                        return Some(self.error(op, *sequence, &error));
                    }
                    state.ended = sequence + 1;
                    state.flights.pop_front();
                    state.first_since = Some(Instant::now());
                    self.watched.changed.notify_all();
                }
                Ok(false) => return self.overdue(op, *sequence, state.first_since),
                Err(error) => return Some(self.error(op, *sequence, &error)),
            }
        }
        None
    }

    fn overdue(
        &self,
        op: &'static str,
        sequence: u64,
        since: Option<Instant>,
    ) -> Option<CommError> {
        if let Err(error) = self.comm.state() {
            return Some(self.error(op, sequence, &error));
        }
        let waited = since.map(|since| since.elapsed()).unwrap_or_default();
        (waited >= self.timeout).then(|| timeout_error(op, sequence, self.rank, waited))
    }
}
