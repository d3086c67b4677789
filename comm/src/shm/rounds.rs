//! How ranks wait for each other: numbered rounds, a futex, deadlines.
//!
//! A rank *posts* a round when it has written its data for that round, and *waits* until all ranks have
//! posted it. What a peer wrote before it posted round `t` may be read after waiting for `t` and until the
//! reader posts `t + 2`. So with [`super::segment::DEPTH`] = 3 buffers, used in turn, a rank that has waited
//! for `t + 2` may overwrite what it wrote for `t`. Between posting and waiting a rank works on the data of
//! the previous round, so it seldom has to sleep.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::*};
use std::time::{Duration, Instant};

use super::segment::{Call, Segment};
use crate::{Blame, CommError, Result};

/// Interval at which a sleeping rank checks whether its peers are alive and whether its deadline has passed.
const TICK: Duration = Duration::from_millis(50);

/// How long a rank does not count as hanging after its last [`super::Shm::sign_of_life`].
const ALIVE_TIMEOUT: Duration = Duration::from_secs(1);

/// Kind of failure in a [`super::segment::FailureRecord`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum FailureKind {
    /// A rank called `abort`, or dropped its communicator without `finalize`.
    Abort = 1,
    /// A deadline passed.
    Timeout = 2,
    /// Anything else.
    Other = 3,
}

/// The collective in which a rank waits, for its errors.
#[derive(Debug, Clone, Copy)]
pub(super) struct At {
    pub(super) call: Call,
    pub(super) sequence: u64,
}

/// Returns an error from outside shared memory that ends a wait, if there is one.
type Interruption = Box<dyn Fn() -> Option<CommError> + Send + Sync>;

/// A rank's view of the rounds of its group.
pub(super) struct Rounds {
    segment: Segment,
    rank: usize,
    /// Rank number of the first slot, for errors.
    first: usize,
    /// Last round that this rank has posted.
    posted: AtomicU64,
    timeout: Duration,
    spins: u32,
    peers: Vec<Liveness>,
    interruption: OnceLock<Interruption>,
}

/// How to find out whether a peer's process is alive.
enum Liveness {
    /// Not checked: this process itself, or a kernel without pidfd.
    Unknown,
    Watched(OwnedFd),
    Gone,
}

impl Rounds {
    /// Announces this process in its slot and waits up to `join_timeout` until all ranks have done so. Later
    /// waits time out after `timeout`. Errors number the slots from `first`.
    pub(super) fn join(
        segment: Segment,
        rank: usize,
        first: usize,
        join_timeout: Duration,
        timeout: Duration,
    ) -> Result<Self> {
        // Where every core has a rank, a spinning rank takes CPU time from the one that it waits for.
        let spins = if online_cores() > segment.world_size() { 2000 } else { 20 };
        segment.slots()[rank].pid.store(std::process::id(), Release);
        let mut rounds = Self {
            segment,
            rank,
            first,
            posted: AtomicU64::new(0),
            timeout: join_timeout,
            spins,
            peers: Vec::new(),
            interruption: OnceLock::new(),
        };
        let round = rounds.post();
        rounds.wait(round, At { call: Call::CONNECT, sequence: 0 })?;
        let pids = rounds.segment.slots().iter().map(|slot| slot.pid.load(Acquire));
        rounds.peers = pids.map(Liveness::watch).collect();
        rounds.timeout = timeout;
        Ok(rounds)
    }

    pub(super) fn segment(&self) -> &Segment {
        &self.segment
    }

    pub(super) fn rank(&self) -> usize {
        self.rank
    }

    /// Returns the rank number of `slot` that errors use.
    pub(super) fn name(&self, slot: usize) -> usize {
        self.first + slot
    }

    /// See [`super::Shm::interrupt_by`]. The first interruption stays; a second one is ignored.
    pub(super) fn interrupt_by(&self, interruption: Interruption) {
        let _ = self.interruption.set(interruption);
    }

    /// See [`super::Shm::sign_of_life`].
    pub(super) fn sign_of_life(&self) {
        self.segment.slots()[self.rank].alive_at.store(monotonic_ns(), Relaxed);
    }

    /// Fails if the group has already failed.
    pub(super) fn check(&self) -> Result<()> {
        match self.segment.header().failure.read() {
            Some(failure) => Err(failure.into_error()),
            None => Ok(()),
        }
    }

    /// Returns the round that this rank posts next.
    pub(super) fn next(&self) -> u64 {
        self.posted.load(Relaxed) + 1
    }

    /// Posts the next round and returns its number. This rank has written all its data for it, and no longer
    /// reads data of the round before the previous one.
    pub(super) fn post(&self) -> u64 {
        let round = self.next();
        self.posted.store(round, Relaxed);
        self.segment.slots()[self.rank].posted.store(low(round), SeqCst);
        if self.segment.slots().iter().all(|slot| reached(slot.posted.load(SeqCst), round)) {
            let bell = &self.segment.header().bell;
            bell.round.store(low(round), SeqCst);
            if bell.sleepers.load(SeqCst) > 0 {
                wake_all(&bell.round);
            }
        }
        round
    }

    /// Waits until every rank has posted `round`.
    pub(super) fn wait(&self, round: u64, at: At) -> Result<()> {
        let bell = &self.segment.header().bell;
        for _ in 0..=self.spins {
            if reached(bell.round.load(Acquire), round) {
                return Ok(());
            }
            std::hint::spin_loop();
        }
        bell.sleepers.fetch_add(1, SeqCst);
        let result = self.sleep(round, at);
        bell.sleepers.fetch_sub(1, SeqCst);
        result
    }

    fn sleep(&self, round: u64, at: At) -> Result<()> {
        let start = Instant::now();
        let bell = &self.segment.header().bell;
        loop {
            let seen = bell.round.load(SeqCst);
            if reached(seen, round) {
                return Ok(());
            }
            // The last rank to post may have been killed before it rang the bell: look at the slots too.
            let missing = self.missing(round);
            if missing.is_empty() {
                std::sync::atomic::fence(SeqCst);
                return Ok(());
            }
            let waited = start.elapsed();
            if let Some(error) = self.failure(round, &missing, waited, at) {
                return Err(error);
            }
            let left = self.timeout.checked_sub(waited).filter(|left| !left.is_zero());
            sleep_on(&bell.round, seen, left.map_or(TICK, |left| TICK.min(left)));
        }
    }

    fn missing(&self, round: u64) -> Vec<usize> {
        let slots = self.segment.slots().iter().enumerate();
        slots
            .filter(|(_, slot)| !reached(slot.posted.load(SeqCst), round))
            .map(|(r, _)| r)
            .collect()
    }

    /// Returns the reason to stop waiting for `missing` to post `round`, if there is one.
    fn failure(
        &self,
        round: u64,
        missing: &[usize],
        waited: Duration,
        at: At,
    ) -> Option<CommError> {
        let mut recorded = self.segment.header().failure.read();
        if let Some(failure) = recorded.take_if(|failure| failure.kind == FailureKind::Abort as u32)
        {
            return Some(failure.into_error());
        }
        if let Some(error) = self.interruption.get().and_then(|interruption| interruption()) {
            return Some(error);
        }
        // A rank that posted `round` and then exited, since `missing` was determined, is not lost.
        let is_lost = |rank: usize| {
            let posted = &self.segment.slots()[rank].posted;
            self.is_gone(rank) && !reached(posted.load(SeqCst), round)
        };
        if let Some(&rank) = missing.iter().find(|&&rank| is_lost(rank)) {
            let pid = self.segment.slots()[rank].pid.load(Acquire);
            let (op, sequence) = (at.call.name(), at.sequence);
            return Some(CommError::PeerGone { rank: self.name(rank), pid, op, sequence });
        }
        let mut hanging = missing.to_vec();
        hanging.retain(|&rank| self.hangs(rank));
        if let Some(failure) = recorded {
            hanging.retain(|&rank| self.name(rank) != failure.by);
            if failure.kind == FailureKind::Timeout as u32 && !hanging.is_empty() {
                return Some(self.timeout(hanging, waited, at));
            }
            return Some(failure.into_error());
        }
        (waited >= self.timeout && !hanging.is_empty()).then(|| self.timeout(hanging, waited, at))
    }

    /// Returns whether a missing rank has given no sign of life for [`ALIVE_TIMEOUT`].
    fn hangs(&self, rank: usize) -> bool {
        let alive_at = self.segment.slots()[rank].alive_at.load(Relaxed);
        Duration::from_nanos(monotonic_ns().saturating_sub(alive_at)) >= ALIVE_TIMEOUT
    }

    fn is_gone(&self, rank: usize) -> bool {
        self.peers.get(rank).is_some_and(Liveness::is_gone)
    }

    fn timeout(&self, missing: Vec<usize>, waited: Duration, at: At) -> CommError {
        let detail: Vec<_> = missing.iter().map(|&rank| self.last_joined(rank, at)).collect();
        CommError::Timeout {
            op: at.call.name(),
            sequence: at.sequence,
            rank: self.name(self.rank),
            missing: missing.into_iter().map(|rank| self.name(rank)).collect(),
            waited,
            detail: detail.join("; "),
        }
    }

    /// Describes the last collective that a missing rank has joined.
    fn last_joined(&self, rank: usize, at: At) -> String {
        let (slot, rank) = (&self.segment.slots()[rank], self.name(rank));
        if slot.pid.load(Acquire) == 0 {
            return format!("rank {rank} never connected");
        }
        let Some(sequence) = slot.joined.load(Acquire).checked_sub(1) else {
            return format!("rank {rank} has joined no collective yet");
        };
        let call = slot.calls[(sequence % 2) as usize].call().describe();
        if sequence == at.sequence {
            format!("rank {rank} joined this {call} and stopped in it")
        } else {
            format!("rank {rank} last joined {call}, #{sequence}")
        }
    }

    /// Makes the present and future waits of every rank fail.
    pub(super) fn publish_failure(&self, kind: FailureKind, reason: &str, blame: &Blame) {
        self.segment.header().failure.publish(self.name(self.rank), kind as u32, reason, blame);
        wake_all(&self.segment.header().bell.round);
    }
}

impl Liveness {
    fn watch(pid: u32) -> Self {
        let Ok(signed) = libc::pid_t::try_from(pid) else { return Self::Unknown };
        if pid == std::process::id() {
            return Self::Unknown;
        }
        // A pidfd, unlike a process id, is never reused for another process, and polls readable for a zombie.
        // SAFETY: plain system call; a new descriptor comes back or -1.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, signed, 0) };
        match i32::try_from(fd) {
            // SAFETY: the descriptor is new, so nothing else owns it.
            Ok(fd) if fd >= 0 => Self::Watched(unsafe { OwnedFd::from_raw_fd(fd) }),
            _ if io::Error::last_os_error().raw_os_error() == Some(libc::ESRCH) => Self::Gone,
            _ => Self::Unknown,
        }
    }

    fn is_gone(&self) -> bool {
        match self {
            Self::Unknown => false,
            Self::Gone => true,
            Self::Watched(fd) => {
                let mut poll =
                    libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
                // SAFETY: `poll` is one valid entry, and a timeout of 0 returns at once.
                unsafe { libc::poll(&raw mut poll, 1, 0) == 1 }
            }
        }
    }
}

/// Returns the number of online cores of the machine, not only of those that this rank is pinned to.
fn online_cores() -> usize {
    // SAFETY: plain call.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) }).unwrap_or(1)
}

/// Returns the time of a clock that all processes of the machine share.
fn monotonic_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes to `time`.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    let time = Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32);
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn low(round: u64) -> u32 {
    (round & u64::from(u32::MAX)) as u32
}

/// Returns whether a counter that is truncated to 32 bits has reached `round`.
fn reached(counter: u32, round: u64) -> bool {
    counter.wrapping_sub(low(round)) < 1 << 31
}

fn sleep_on(word: &AtomicU32, seen: u32, limit: Duration) {
    let limit = libc::timespec {
        tv_sec: libc::time_t::try_from(limit.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: limit.subsec_nanos().into(),
    };
    // Not FUTEX_PRIVATE_FLAG: the word is shared between processes.
    // SAFETY: the word and the limit outlive the call; every return means "look again".
    unsafe {
        libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, seen, &raw const limit);
    }
}

fn wake_all(word: &AtomicU32) {
    // SAFETY: the word is valid; the call only wakes sleepers.
    unsafe {
        libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, i32::MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_go_on_past_32_bits() {
        let last = u64::from(u32::MAX);
        assert!(reached(low(last), last));
        assert!(!reached(low(last), last + 1));
        assert!(reached(low(last + 1), last));
        assert!(reached(low(last + 1), last + 1));
    }
}
