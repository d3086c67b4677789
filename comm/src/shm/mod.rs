//! Collectives between processes of one machine, through memory that they share.
//!
//! The ranks of a group map one segment (`segment`). It holds one slot per rank, in which the rank publishes
//! which collective it has called and how far it is, and buffers for staging data. Ranks wait for each
//! other in rounds (`rounds`), asleep on a futex; every 50 ms a sleeping rank checks whether its peers'
//! processes are alive and whether its deadline has passed. The deadline applies to a single wait, so a
//! collective that makes progress may take longer.
//!
//! Reductions combine elements in rank order, so all ranks end with the same bits, whatever the path:
//! - up to 32 KiB: every rank stages its buffer and reduces all of them itself, in one round;
//! - a buffer in [`alloc_shared`](crate::Communicator::alloc_shared) memory, at the same offset on
//!   all ranks: each rank reduces its chunk straight from and into all ranks' buffers;
//! - anything else goes through staging pieces that fit in a core's own cache.
//!
//! Does not read the environment. Needs Linux, and one user and one PID namespace for all ranks.

mod collectives;
mod engine;
mod memory;
mod region;
mod rounds;
mod segment;

use std::fs::File;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::bootstrap::{Store, published};
use crate::communicator::check_request;
use crate::executor::Executor;
use crate::{
    Blame, Collective, CommError, Communicator, Memory, RawBuffer, Result, SharedMemory, Work,
};
use engine::ShmEngine;
use memory::Locator;
use rounds::{FailureKind, Rounds};
pub(crate) use segment::MAX_RANKS;
use segment::Segment;

const BACKEND: &str = "shm";

/// The communicator of a rank in a group that shares memory.
pub struct Shm {
    executor: Executor<ShmEngine>,
    finalized: AtomicBool,
}

/// Connects the ranks of one machine. Collective.
///
/// `rank`: this rank, one of `ranks`. The communicator counts ranks from 0; its errors use the numbers in
/// `ranks`.
/// `key`: where the first rank publishes the segment in `store`; each group needs its own.
/// `timeout`: of every wait, here and in the collectives that follow.
///
/// # Errors
/// [`CommError::Timeout`], naming the ranks that did not come within `timeout`; [`CommError::Connect`] where
/// memory cannot be shared.
pub fn connect(
    rank: usize,
    ranks: Range<usize>,
    store: &dyn Store,
    key: &str,
    timeout: Duration,
) -> Result<Shm> {
    let (first, world_size) = (ranks.start, ranks.len());
    if world_size > MAX_RANKS || !ranks.contains(&rank) {
        return Err(failed(format!(
            "rank {rank} of {world_size}; at most {MAX_RANKS} are possible"
        )));
    }
    let rank = rank - first;
    let deadline = Instant::now() + timeout;
    // The file stays open until all ranks have joined, so that they can open it through `/proc`.
    let (_file, segment) = if rank == 0 {
        let (file, segment) = publish(world_size, store, key)?;
        (Some(file), segment)
    } else {
        let text = published(store, key, first, first + rank, timeout)?;
        (None, attach(world_size, first, key, &text)?)
    };
    let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    let rounds = Rounds::join(segment, rank, first, left, timeout)
        .map_err(|error| error.while_connecting(BACKEND))?;
    Ok(Shm { executor: Executor::new(ShmEngine::new(rounds)), finalized: AtomicBool::new(false) })
}

fn failed(reason: String) -> CommError {
    CommError::Connect { backend: BACKEND, reason }
}

fn publish(world_size: usize, store: &dyn Store, key: &str) -> Result<(File, Segment)> {
    let create = || {
        let (file, locator, mapping) = memory::create(Segment::size_bytes(world_size))?;
        let nonce = memory::random()?;
        std::io::Result::Ok((file, locator, Segment::initialise(mapping, world_size, nonce), nonce))
    };
    let (file, locator, segment, nonce) =
        create().map_err(|error| failed(format!("cannot create shared memory: {error}")))?;
    store.put(key, &format!("{} {} {nonce:x}", locator.pid, locator.fd))?;
    Ok((file, segment))
}

fn attach(world_size: usize, first: usize, key: &str, text: &str) -> Result<Segment> {
    let (locator, nonce) = parse(text).ok_or_else(|| {
        failed(format!("{key:?} in the store is {text:?}, not a segment of shared memory"))
    })?;
    memory::open(locator, Segment::size_bytes(world_size))
        .and_then(|mapping| Segment::attach(mapping, world_size, nonce))
        .map_err(|error| {
            failed(format!(
                "cannot open rank {first}'s shared memory ({error}); its ranks must run on one \
                 machine, as one user, in one PID namespace"
            ))
        })
}

fn parse(text: &str) -> Option<(Locator, u64)> {
    let mut words = text.split(' ');
    let pid = words.next()?.parse().ok()?;
    let fd = words.next()?.parse().ok()?;
    let nonce = u64::from_str_radix(words.next()?, 16).ok()?;
    words.next().is_none().then_some((Locator { pid, fd }, nonce))
}

impl Shm {
    fn rounds(&self) -> &Rounds {
        &self.executor.engine().rounds
    }

    /// Makes waiting collectives call `interruption` every 50 ms; they fail with the error that it returns,
    /// if any.
    pub fn interrupt_by(
        &self,
        interruption: impl Fn() -> Option<CommError> + Send + Sync + 'static,
    ) {
        self.rounds().interrupt_by(Box::new(interruption));
    }

    /// Signals that this rank waits for something other than shared memory, with a deadline of its own. Peers
    /// do not treat it as hanging until one second after its last call.
    pub fn sign_of_life(&self) {
        self.rounds().sign_of_life();
    }

    fn check(&self, collective: Collective, buffer: &RawBuffer) -> Result<()> {
        if buffer.memory != Memory::Host {
            let what = "reach memory of a GPU".to_owned();
            return Err(CommError::Unsupported { backend: BACKEND, what });
        }
        check_request(BACKEND, collective, buffer, self.world_size())
    }
}

impl Communicator for Shm {
    fn rank(&self) -> usize {
        self.rounds().rank()
    }

    fn world_size(&self) -> usize {
        self.rounds().segment().world_size()
    }

    fn backend(&self) -> &'static str {
        BACKEND
    }

    unsafe fn start(&self, collective: Collective, buffer: RawBuffer) -> Result<Work> {
        self.check(collective, &buffer)?;
        self.executor.start(collective, buffer)
    }

    unsafe fn run(&self, collective: Collective, buffer: RawBuffer) -> Result<()> {
        self.check(collective, &buffer)?;
        self.executor.run(collective, buffer)
    }

    fn alloc_shared(&self, len_bytes: usize) -> Result<Option<SharedMemory>> {
        let allocate = |engine: &ShmEngine, sequence| engine.alloc_shared(len_bytes, sequence);
        self.executor.exclusive(allocate)?.map(Some)
    }

    fn abort(&self, reason: &str, blame: Blame) {
        self.rounds().publish_failure(FailureKind::Abort, reason, &blame);
        let by = self.rounds().name(self.rank());
        self.executor.close(CommError::Aborted { by, reason: reason.to_owned(), blame });
    }

    fn finalize(&self) -> Result<()> {
        if self.finalized.load(Ordering::Acquire) {
            return Ok(());
        }
        self.executor.exclusive(ShmEngine::finalize)?;
        self.finalized.store(true, Ordering::Release);
        let what = "run a collective after finalize".to_owned();
        self.executor.close(CommError::Unsupported { backend: BACKEND, what });
        Ok(())
    }
}

impl Drop for Shm {
    fn drop(&mut self) {
        if !*self.finalized.get_mut() {
            // Peers fail now rather than at their deadline.
            let reason = format!(
                "rank {} dropped its communicator before the end",
                self.rounds().name(self.rank())
            );
            self.rounds().publish_failure(FailureKind::Abort, &reason, &Blame::Nobody);
        }
    }
}
