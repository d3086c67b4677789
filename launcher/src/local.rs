//! The ranks of this node during one attempt at the job: starts them, receives their messages, and stops
//! them.
//!
//! Decides nothing: events are reported as [`RankEvent`], and what to do comes from the supervisor, which is in
//! this process or on node 0.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use comm::Blame;
use comm::control::ToLauncher;
use job::ExitCode;
use tokio::process::Child;
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::time::{Instant, timeout};

use crate::cluster::message::RankEvent;
use crate::console::Console;
use crate::control_server::{ControlServer, KeyValueStore, Message, StoreLocation};
use crate::error::LaunchError;
use crate::logs::RankLog;
use crate::memory;
use crate::mpi::{MpiEvent, Mpirun, Slots};
use crate::plan::RankPlan;
use crate::policy::Exit;
use crate::spawn::{self, Groups, Spec};

/// How long to wait for the last messages of a rank whose process has ended.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(200);

/// How long to wait, at the end of an attempt, for the rest of the ranks' output.
const LAST_OUTPUT: Duration = Duration::from_secs(1);

/// Path of a rank's log, and its last lines.
pub type LogTail = (PathBuf, Vec<String>);

/// What this node has to provide for MPI in an attempt.
#[derive(Debug, Clone)]
pub enum MpiRole {
    /// Nothing: the ranks do not use MPI.
    No,
    /// Slots for its ranks; node 0's launcher runs `mpirun`.
    Slots,
    /// Slots for its ranks, and `mpirun`.
    Mpirun(Mpirun),
}

/// An event on this node.
#[derive(Debug)]
pub enum Local {
    /// An event of a rank.
    RankEvent(RankEvent),
    /// `mpirun` wants a daemon on another node.
    Daemon {
        /// The node's name.
        host: String,
        /// The daemon's command line, for a shell.
        command: String,
    },
    /// `mpirun` was killed by a signal.
    MpirunKilled {
        /// When it ended.
        at: Instant,
        /// How it ended, and where its log is.
        reason: String,
    },
}

struct Exited {
    rank: usize,
    status: ExitStatus,
    at: Instant,
}

/// The processes of the ranks, and the channels on which their events arrive. Dropping this kills the
/// processes.
pub struct LocalRanks<'a> {
    spec: Spec,
    plans: &'a [RankPlan],
    console: Option<Console>,
    groups: Groups,
    server: ControlServer,
    messages: UnboundedReceiver<Message>,
    exits: UnboundedReceiver<Exited>,
    exit_sender: UnboundedSender<Exited>,
    rank_events: VecDeque<RankEvent>,
    logs: BTreeMap<usize, RankLog>,
    slots: Option<Slots>,
    oom_kills: OomKills,
}

/// Counts of processes that the kernel has killed because memory ran out. A rank that SIGKILL ended shortly
/// after the count has risen is taken to be one of them.
struct OomKills {
    /// The count [`SHORTLY`] ago or earlier, and that of the last look; `None` where the count is unknown, or
    /// once the launcher itself has killed ranks.
    counts: Option<[u64; 2]>,
    looked: Instant,
}

const SHORTLY: Duration = Duration::from_secs(5);

impl OomKills {
    fn new() -> Self {
        Self { counts: memory::oom_kills().map(|count| [count; 2]), looked: Instant::now() }
    }

    /// Updates the counts, so that kills of long ago no longer count as new.
    fn look(&mut self) {
        if self.looked.elapsed() < SHORTLY {
            return;
        }
        self.looked = Instant::now();
        if let (Some(counts), Some(now)) = (&mut self.counts, memory::oom_kills()) {
            *counts = [counts[1], now.max(counts[1])];
        }
    }

    /// Returns whether there was a recent kill that no rank's end has been attributed to, and attributes one.
    fn another(&mut self) -> bool {
        let Some([before, last]) = &mut self.counts else { return false };
        let is_more = memory::oom_kills().is_some_and(|now| now > *before);
        *before += u64::from(is_more);
        *last = (*before).max(*last);
        is_more
    }
}

impl<'a> LocalRanks<'a> {
    /// Starts the ranks of `plans`, whose numbers are consecutive; over MPI, as soon as all have slots. A
    /// rank that cannot be started is reported as an event. `values` says where the values that ranks publish
    /// for each other are kept. The output of the first rank is also shown on `console`, if there is one.
    ///
    /// # Errors
    /// [`LaunchError`] when a socket cannot be opened or `mpirun` cannot be started.
    pub fn start(
        plans: &'a [RankPlan],
        spec: Spec,
        store_location: StoreLocation,
        mpi: &MpiRole,
        console: Option<Console>,
    ) -> Result<Self, LaunchError> {
        let ranks = range(plans);
        let (message_sender, messages) = mpsc::unbounded_channel();
        let (exit_sender, exits) = mpsc::unbounded_channel();
        let server = ControlServer::listen(ranks.clone(), store_location, message_sender)
            .map_err(LaunchError::system("open a control socket"))?;
        let slots = match mpi {
            MpiRole::No => None,
            MpiRole::Slots | MpiRole::Mpirun(_) => {
                let failed = LaunchError::system("open a socket for MPI");
                Some(Slots::listen(ranks).map_err(failed)?)
            }
        };
        let mut local = Self {
            spec,
            plans,
            console,
            groups: Groups::default(),
            server,
            messages,
            exits,
            exit_sender,
            rank_events: VecDeque::new(),
            logs: BTreeMap::new(),
            slots,
            oom_kills: OomKills::new(),
        };
        match (&mut local.slots, mpi) {
            (Some(slots), MpiRole::Mpirun(mpirun)) => slots.start(mpirun).map_err(|source| {
                let program = mpirun.program.display();
                LaunchError::System { what: format!("start {program}, which MPI needs"), source }
            })?,
            (Some(_), _) => {}
            (None, _) => local.spawn(),
        }
        Ok(local)
    }

    fn spawn(&mut self) {
        for plan in self.plans {
            let rank = plan.world.rank;
            let mpi = self.slots.as_ref().map(|slots| slots.env(rank)).unwrap_or_default();
            match self.spawn_one(plan, mpi) {
                Ok(pid) => self.rank_events.push_back(RankEvent::Spawned { rank, pid }),
                Err(error) => self.give_up(rank, &error.to_string()),
            }
        }
    }

    fn spawn_one(
        &mut self,
        plan: &RankPlan,
        mpi: Vec<(std::ffi::OsString, std::ffi::OsString)>,
    ) -> Result<u32, LaunchError> {
        let rank = plan.world.rank;
        let socket = self.server.socket();
        let (child, output) = spawn::spawn(&self.spec, plan, socket, mpi).map_err(|source| {
            LaunchError::Spawn { rank, trainer: self.spec.trainer.clone(), source }
        })?;
        let pid = child.id().unwrap_or_default();
        self.groups.add(rank, pid);
        let console = self.console.clone().filter(|_| rank == self.plans[0].world.rank);
        let path = self.spec.run_dir.log_path(rank);
        let log = RankLog::start(rank, path, output, console)
            .map_err(LaunchError::system("start a thread"))?;
        self.logs.insert(rank, log);
        let last_words = self.server.drained(rank);
        tokio::spawn(watch(child, rank, last_words, self.exit_sender.clone()));
        Ok(pid)
    }

    /// Reports a rank that cannot be started as failed and ended.
    fn give_up(&mut self, rank: usize, reason: &str) {
        let exit_code = ExitCode::Setup as u8;
        let (message, blame) = (reason.to_owned(), Blame::Nobody);
        let message = ToLauncher::Failed { exit_code, message, blame };
        self.rank_events.push_back(RankEvent::Said { rank, message });
        self.rank_events.push_back(RankEvent::Exited {
            rank,
            exit: Exit::Code(exit_code.into()),
            ago_ms: 0,
        });
    }

    /// Waits for the next event and returns it. Cancel safe: may be dropped and called again.
    pub async fn next(&mut self) -> Local {
        loop {
            if let Some(rank_events) = self.rank_events.pop_front() {
                return Local::RankEvent(rank_events);
            }
            let slots = async {
                match &mut self.slots {
                    Some(slots) => slots.next().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                // Polled before exits: a rank's last messages explain its end.
                Some(message) = self.messages.recv() => {
                    self.oom_kills.look();
                    return Local::RankEvent(message.into());
                }
                Some(exited) = self.exits.recv() => return Local::RankEvent(self.exited(&exited)),
                event = slots => match event {
                    MpiEvent::Daemon { host, command } => return Local::Daemon { host, command },
                    MpiEvent::Ready => self.spawn(),
                    MpiEvent::Failed(reason) => self.never_spawned(&reason),
                    MpiEvent::Killed { at, reason } => return Local::MpirunKilled { at, reason },
                },
            }
        }
    }

    fn exited(&mut self, exited: &Exited) -> RankEvent {
        let rank = exited.rank;
        self.groups.remove(rank);
        let exit = match (exited.status.code(), exited.status.signal()) {
            (Some(code), _) => Exit::Code(code),
            (None, Some(libc::SIGKILL)) if self.oom_kills.another() => Exit::OutOfMemory,
            (None, signal) => Exit::Signal(signal.unwrap_or_default()),
        };
        if let Some(slots) = self.slots.as_mut().filter(|_| exit.is_good()) {
            slots.release(rank);
        }
        let ago_ms = u64::try_from(exited.at.elapsed().as_millis()).unwrap_or(u64::MAX);
        RankEvent::Exited { rank, exit, ago_ms }
    }

    /// Reports all ranks as failed for `reason`, without having started them, and ends MPI on this node.
    fn never_spawned(&mut self, reason: &str) {
        self.slots = None;
        for rank in range(self.plans) {
            self.give_up(rank, reason);
        }
    }

    /// Returns access to the values that ranks publish for each other.
    pub fn store(&self) -> KeyValueStore {
        self.server.store()
    }

    /// Asks all ranks to save a checkpoint and exit.
    pub fn stop(&self, reason: &str) {
        self.server.stop(reason);
    }

    /// Kills all ranks.
    pub fn kill(&mut self) {
        if self.slots.is_some() && self.logs.is_empty() {
            return self.never_spawned("killed before it was started");
        }
        self.oom_kills.counts = None;
        self.groups.kill();
    }

    /// Starts a daemon that `mpirun` wants on this node.
    pub fn start_daemon(&mut self, command: &str) {
        let Some(slots) = &mut self.slots else { return };
        if let Err(error) = slots.start_daemon(command) {
            self.never_spawned(&format!("cannot start a daemon of mpirun: {error}"));
        }
    }

    /// Ends MPI, waits for the rest of the ranks' output, and returns each rank's log and last lines. To be
    /// called when all ranks have ended.
    pub async fn end(&mut self) -> Vec<LogTail> {
        if let Some(slots) = &mut self.slots {
            slots.end().await;
        }
        let ended = async {
            for log in self.logs.values_mut() {
                log.ended().await;
            }
        };
        if timeout(LAST_OUTPUT, ended).await.is_err() {
            tracing::warn!("a process that a rank started still holds that rank's output open");
        }
        let tail = |rank| match self.logs.get(&rank) {
            Some(log) => (log.path().to_owned(), log.tail()),
            None => (self.spec.run_dir.log_path(rank), Vec::new()),
        };
        range(self.plans).map(tail).collect()
    }
}

/// Returns the ranks of `plans`, whose numbers are consecutive.
fn range(plans: &[RankPlan]) -> Range<usize> {
    let first = plans.first().map_or(0, |plan| plan.world.rank);
    first..first + plans.len()
}

impl From<Message> for RankEvent {
    fn from(message: Message) -> Self {
        match message {
            Message::Said { rank, message } => Self::Said { rank, message },
            Message::Refused { rank, reason } => Self::Refused { rank, reason },
        }
    }
}

async fn watch(
    mut child: Child,
    rank: usize,
    last_words: impl Future<Output = ()>,
    exits: UnboundedSender<Exited>,
) {
    let status = match child.wait().await {
        Ok(status) => status,
        Err(error) => {
            tracing::error!("cannot wait for rank {rank}: {error}");
            ExitStatus::from_raw(libc::SIGKILL)
        }
    };
    let at = Instant::now();
    // There is a timeout because the connection of a rank that never connected is never closed.
    let _ = timeout(DRAIN_TIMEOUT, last_words).await;
    // The receiver is gone when the attempt was given up.
    let _ = exits.send(Exited { rank, status, at });
}
