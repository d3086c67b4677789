//! Enters collectives and checks that all ranks have called the same one.

use std::sync::atomic::Ordering::*;
use std::sync::{Mutex, PoisonError};

use super::region::{Region, Regions};
use super::rounds::{At, FailureKind, Rounds};
use super::segment::{Call, SharedPlace};
use crate::executor::{Engine, Job};
use crate::{CommError, Result, SharedMemory};

/// The [`Engine`] of a rank: its rounds and its shared allocations.
pub(super) struct ShmEngine {
    pub(super) rounds: Rounds,
    regions: Mutex<Regions>,
}

/// Result of entering a collective.
pub(super) struct Entered {
    /// Location of the buffer, if it is the same in shared memory on every rank.
    pub(super) place: Option<SharedPlace>,
    /// The round that was waited for.
    pub(super) round: u64,
}

impl ShmEngine {
    pub(super) fn new(rounds: Rounds) -> Self {
        Self { rounds, regions: Mutex::default() }
    }

    /// Joins a collective and waits until all ranks have joined. The caller has staged its data for the first
    /// round already.
    ///
    /// # Errors
    /// [`CommError::Mismatch`] on all ranks when they called different collectives; and those of
    /// [`Rounds::wait`].
    pub(super) fn enter(&self, at: At, place: Option<SharedPlace>) -> Result<Entered> {
        self.rounds.check()?;
        let slots = self.rounds.segment().slots();
        let mine = &slots[self.rounds.rank()];
        let parity = (at.sequence % 2) as usize;
        mine.calls[parity].write(at.call, place);
        mine.joined.store(at.sequence + 1, Release);
        let round = self.rounds.post();
        self.rounds.wait(round, at)?;
        let other = slots.iter().position(|slot| slot.calls[parity].call() != at.call);
        if let Some(peer) = other {
            return Err(CommError::Mismatch {
                sequence: at.sequence,
                rank: self.rounds.name(self.rounds.rank()),
                here: at.call.describe(),
                peer: self.rounds.name(peer),
                there: slots[peer].calls[parity].call().describe(),
            });
        }
        let same = slots.iter().all(|slot| slot.calls[parity].place() == place);
        Ok(Entered { place: place.filter(|_| same), round })
    }

    /// Waits until every rank has come to the same point of the collective.
    pub(super) fn meet(&self, at: At) -> Result<()> {
        let round = self.rounds.post();
        self.rounds.wait(round, at)
    }

    /// Publishes a failure that this rank has seen itself, so that its peers fail too.
    pub(super) fn publish(&self, error: &CommError) {
        let kind = match error {
            CommError::Aborted { .. } => return,
            CommError::Timeout { .. } => FailureKind::Timeout,
            _ => FailureKind::Other,
        };
        self.rounds.publish_failure(kind, &error.to_string(), &error.blame());
    }

    fn published<R>(&self, result: Result<R>) -> Result<R> {
        if let Err(error) = &result {
            self.publish(error);
        }
        result
    }

    /// Runs the last collective: no rank returns before all have called it.
    pub(super) fn finalize(&self, sequence: u64) -> Result<()> {
        let at = At { call: Call::FINALIZE, sequence };
        self.published(self.enter(at, None).map(|_| ()))
    }

    /// Returns the allocation of [`Self::alloc_shared`] in which a buffer lies, if it does, and where.
    pub(super) fn locate(&self, job: &Job) -> Option<(std::sync::Arc<Region>, SharedPlace)> {
        self.regions().locate(&job.buffer)
    }

    fn regions(&self) -> std::sync::MutexGuard<'_, Regions> {
        self.regions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Allocates memory that all ranks map. The outer result is a failure of the group, the inner one of this
    /// allocation alone.
    pub(super) fn alloc_shared(
        &self,
        len_bytes: usize,
        sequence: u64,
    ) -> Result<Result<SharedMemory>> {
        let at = At { call: Call::alloc_shared(len_bytes), sequence };
        let region = self.published(Region::allocate(self, len_bytes, at))?;
        Ok(region.map(|region| self.regions().add(region)))
    }
}

impl Engine for ShmEngine {
    fn run(&self, job: &Job) -> Result<()> {
        self.published(self.collective(job))
    }
}
