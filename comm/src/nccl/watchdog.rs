//! What is under way, and the thread that ends it when it takes too long or NCCL has failed.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nccl_rs::cuda::Event;

use super::{Shared, late};
use crate::{CommError, Result};

/// How often the watchdog looks.
const TICK: Duration = Duration::from_millis(20);

/// How often a host thread looks whether its result is there.
const HOST_TICK: Duration = Duration::from_micros(50);

/// A queued collective.
pub(super) struct Flight {
    pub(super) op: &'static str,
    pub(super) sequence: u64,
    pub(super) done: Arc<Event>,
}

/// What is under way and how it goes.
#[derive(Default)]
pub(super) struct Watched {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    started: u64,
    /// Collectives that have ended, all in order.
    ended: u64,
    flights: VecDeque<Flight>,
    /// Since when the first of `flights` is the first.
    first_since: Option<Instant>,
    failed: Option<CommError>,
    finalized: Option<CommError>,
    leaving: bool,
}

impl Watched {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of the next collective.
    pub(super) fn next_sequence(&self) -> Result<u64> {
        let mut state = self.lock();
        if let Some(error) = state.failed.as_ref().or(state.finalized.as_ref()) {
            return Err(error.clone());
        }
        state.started += 1;
        Ok(state.started - 1)
    }

    /// The number of the collective that was started last; 0 where none was.
    pub(super) fn newest(&self) -> u64 {
        self.lock().started.saturating_sub(1)
    }

    pub(super) fn add(&self, flight: Flight) {
        let mut state = self.lock();
        if state.flights.is_empty() {
            state.first_since = Some(Instant::now());
        }
        state.flights.push_back(flight);
        self.changed.notify_all();
    }

    /// The failure that a collective did not end before.
    pub(super) fn outcome(&self, sequence: u64) -> Result<()> {
        let state = self.lock();
        match &state.failed {
            Some(error) if state.ended <= sequence => Err(error.clone()),
            _ => Ok(()),
        }
    }

    /// Whether the watchdog has seen the good end of a collective.
    fn has_ended(&self, sequence: u64) -> bool {
        self.lock().ended > sequence
    }

    /// Keeps the host waiting until `reached`.
    pub(super) fn wait_for(
        &self,
        sequence: u64,
        reached: impl Fn() -> nccl_rs::Result<bool>,
        failed: impl Fn(nccl_rs::Error) -> CommError,
    ) -> Result<()> {
        loop {
            // Asked first: an aborted kernel ends too, with a result that is none.
            self.outcome(sequence)?;
            match reached() {
                Ok(true) => return self.outcome(sequence),
                Ok(false) => {}
                // What is known of it counts more: that the watchdog has seen a good end, or why there was none.
                Err(_) if self.has_ended(sequence) => return Ok(()),
                Err(error) => {
                    self.outcome(sequence)?;
                    return Err(failed(error));
                }
            }
            std::thread::sleep(HOST_TICK);
        }
    }

    /// Waits until the watchdog has seen the end of everything.
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

    /// Refuses, with `reason`, all that comes from now on.
    pub(super) fn set_finalized(&self, reason: CommError) {
        self.lock().finalized = Some(reason);
    }

    /// Sends the watchdog home.
    pub(super) fn leave(&self) {
        self.lock().leaving = true;
        self.changed.notify_all();
    }
}

impl Shared {
    /// Makes everything under way and everything to come fail; gives the failure that counts, the
    /// first.
    pub(super) fn fail(&self, error: CommError) -> CommError {
        let first = self.watched.lock().failed.get_or_insert(error).clone();
        self.watched.changed.notify_all();
        // What it says would only hide the reason.
        let _ = self.comm.abort();
        first
    }

    /// The watchdog's life.
    pub(super) fn watch(&self) {
        // Where this fails, so does the first look at an event.
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

    /// Takes note of what has ended; gives the reason to end the rest.
    fn look(&self, state: &mut State) -> Option<CommError> {
        while let Some(Flight { op, sequence, done }) = state.flights.front() {
            match done.is_reached() {
                Ok(true) => {
                    // The kernel of a communicator that NCCL gave up ends too.
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
        (waited >= self.timeout).then(|| late(op, sequence, self.rank, waited))
    }
}
