//! Ranks over MPI, started by launchers: `mpirun` without ssh.
//!
//! `mpirun` (Open MPI 5) wants to start two kinds of processes, and gets a stand-in for each:
//!
//! - Its daemons on other nodes. In place of ssh it runs [`helper::agent`], which hands the daemon's command
//!   line to node 0's launcher, which sends it to the launcher of the daemon's node.
//! - The ranks. It runs [`helper::slot`], which hands the environment that MPI needs to the launcher of its
//!   node and waits. The launcher then starts the trainer with that environment, so that a rank over MPI is
//!   watched, logged, pinned and killed like any other.

pub mod helper;
mod mpirun;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::ops::Range;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use comm::control;
use rustix::process::{Pid, Signal, kill_process_group};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::process::{Child, Command};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::frame::read_body;
use crate::logs::RankLog;
use crate::private_folder::private_folder;
use crate::spawn::before_exec;
use helper::{HUB, ToHub};
pub use mpirun::{Mpirun, find_mpirun, over_mpi};

/// Time from [`Slots::listen`] within which all slots of this node have to arrive; then the attempt fails.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// How long `mpirun` and its daemons may take to end by themselves before they are killed.
const END_TIMEOUT: Duration = Duration::from_secs(3);

/// Back-off after the operating system has failed to accept a connection.
const ACCEPT_BACK_OFF: Duration = Duration::from_millis(10);

/// Prefixes of the environment variables that a rank takes from its slot.
const FROM_SLOT: [&str; 3] = ["PMIX_", "OMPI_", "PRTE_"];

/// Prefixes of the environment variables that `mpirun` must not see: it would use Slurm's allocation, or take
/// itself for a rank.
const NOT_FOR_MPIRUN: [&str; 4] = ["SLURM_", "PMI_", "PMIX_", "OMPI_COMM_WORLD_"];

/// An event of MPI on this node.
pub enum MpiEvent {
    /// `mpirun` wants a daemon on another node.
    Daemon {
        /// The node's name.
        host: String,
        /// The daemon's command line, for a shell.
        command: String,
    },
    /// Every rank of this node has a slot.
    Ready,
    /// Slots for the ranks cannot be had, for this reason.
    Failed(String),
    /// `mpirun` was killed by a signal, and ranks may be unable to go on without it.
    Killed {
        /// When it ended.
        at: Instant,
        /// How it ended, and where its log is.
        reason: String,
    },
}

enum Arrival {
    Slot { rank: usize, env: Vec<(String, String)>, release: oneshot::Sender<u8> },
    Daemon { host: String, command: String },
    MpirunEnded { status: ExitStatus, at: Instant },
}

struct Slot {
    env: Vec<(String, String)>,
    release: Option<oneshot::Sender<u8>>,
}

/// The slots of this node, and the processes that MPI needs besides. Dropping this kills all of them.
pub struct Slots {
    folder: TempDir,
    hub: PathBuf,
    launcher: PathBuf,
    ranks: Range<usize>,
    slots: BTreeMap<usize, Slot>,
    arrivals: UnboundedReceiver<Arrival>,
    sender: UnboundedSender<Arrival>,
    deadline: Instant,
    is_ready: bool,
    groups: Vec<Pid>,
    running: watch::Sender<usize>,
    log: Option<RankLog>,
}

impl Slots {
    /// Opens the socket on which the slots of `ranks`, those of this node, arrive. Starts no process.
    ///
    /// # Errors
    /// When the socket cannot be created.
    pub fn listen(ranks: Range<usize>) -> io::Result<Self> {
        let (folder, hub) = private_folder("lockstep-mpi-", "hub")?;
        // A path without whitespace, at which mpirun splits the agent's command line.
        let launcher = folder.path().join("launcher");
        std::os::unix::fs::symlink(std::env::current_exe()?, &launcher)?;
        let listener = UnixListener::bind(&hub)?;
        let (sender, arrivals) = mpsc::unbounded_channel();
        tokio::spawn(accept(listener, sender.clone()));
        Ok(Self {
            folder,
            hub,
            launcher,
            ranks,
            slots: BTreeMap::new(),
            arrivals,
            sender,
            deadline: Instant::now() + START_TIMEOUT,
            is_ready: false,
            groups: Vec::new(),
            running: watch::Sender::new(0),
            log: None,
        })
    }

    /// Starts `mpirun`, on node 0.
    ///
    /// # Errors
    /// When it cannot be executed.
    pub fn start(&mut self, mpirun: &Mpirun) -> io::Result<()> {
        let (reader, writer) = io::pipe()?;
        let mut command = Command::new(&mpirun.program);
        if rustix::process::getuid().is_root() {
            command.arg("--allow-run-as-root");
        }
        let world_size: usize = mpirun.nodes.iter().map(|(_, ranks)| ranks).sum();
        let hosts: Vec<_> =
            mpirun.nodes.iter().map(|(host, ranks)| format!("{host}:{ranks}")).collect();
        let agent = format!("{} mpi-agent", self.launcher.display());
        command
            .args(["-n", &world_size.to_string(), "--host", &hosts.join(",")])
            .args(["--map-by", "slot", "--bind-to", "none", "--leave-session-attached"])
            .args(["--prtemca", "plm", "ssh", "--prtemca", "plm_ssh_agent", &agent])
            .args(["--prtemca", "plm_ssh_no_tree_spawn", "1"]);
        if let Some(network) = &mpirun.network {
            command.args(["--prtemca", "prte_if_include", network]);
        }
        command.arg(&self.launcher).arg("mpi-slot").stdout(writer.try_clone()?).stderr(writer);
        let child = self.spawn(command)?;
        self.log = Some(RankLog::start(0, mpirun.log.clone(), reader, None)?);
        self.watch(child, true);
        Ok(())
    }

    /// Starts a daemon that `mpirun` wants on this node.
    ///
    /// # Errors
    /// When the process cannot be started.
    pub fn start_daemon(&mut self, command_line: &str) -> io::Result<()> {
        // Not sh: dash unblocks signals, and the daemon would die of those that are meant for the launcher.
        let mut command = Command::new("bash");
        command.args(["-c", command_line]).stdout(Stdio::null()).stderr(Stdio::null());
        let child = self.spawn(command)?;
        self.watch(child, false);
        Ok(())
    }

    fn spawn(&mut self, mut command: Command) -> io::Result<Child> {
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            if NOT_FOR_MPIRUN.iter().any(|prefix| name.starts_with(prefix)) {
                command.env_remove(name);
            }
        }
        // SAFETY: all that `before_exec` does is async-signal-safe, as it must be between fork and exec.
        unsafe { command.pre_exec(before_exec) };
        let child = command
            .env(HUB, &self.hub)
            // Files that it leaves behind when it is killed are removed with the folder.
            .env("TMPDIR", self.folder.path())
            .stdin(Stdio::null())
            .process_group(0)
            .spawn()?;
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        self.groups.extend(pid);
        Ok(child)
    }

    fn watch(&self, mut child: Child, is_mpirun: bool) {
        let (sender, running) = (self.sender.clone(), self.running.clone());
        running.send_modify(|count| *count += 1);
        tokio::spawn(async move {
            let status = child.wait().await;
            running.send_modify(|count| *count -= 1);
            if let (true, Ok(status)) = (is_mpirun, status) {
                let _ = sender.send(Arrival::MpirunEnded { status, at: Instant::now() });
            }
        });
    }

    /// Waits for the next event and returns it. After [`MpiEvent::Ready`] that is an unplanned one, such as
    /// that `mpirun` was killed. Cancel safe.
    pub async fn next(&mut self) -> MpiEvent {
        loop {
            let arrival = tokio::select! {
                arrival = self.arrivals.recv() => arrival,
                () = sleep_until(self.deadline), if !self.is_ready => {
                    return MpiEvent::Failed(self.missing());
                }
            };
            match arrival {
                Some(Arrival::Daemon { host, command }) => {
                    return MpiEvent::Daemon { host, command };
                }
                Some(Arrival::Slot { rank, env, release }) if self.ranks.contains(&rank) => {
                    self.slots.insert(rank, Slot { env, release: Some(release) });
                    if self.slots.len() == self.ranks.len() && !self.is_ready {
                        self.is_ready = true;
                        return MpiEvent::Ready;
                    }
                }
                Some(Arrival::Slot { rank, .. }) if !self.is_ready => {
                    return MpiEvent::Failed(format!(
                        "mpirun put rank {rank} on this node, whose ranks are {} to {}; do two nodes \
                         have the same name?",
                        self.ranks.start,
                        self.ranks.end - 1
                    ));
                }
                Some(Arrival::MpirunEnded { status, .. }) if !self.is_ready => {
                    return MpiEvent::Failed(format!("mpirun ended with {status}{}", self.said()));
                }
                Some(Arrival::MpirunEnded { status, at }) if status.signal().is_some() => {
                    let log = self.log.as_ref().map(RankLog::path).unwrap_or(Path::new(""));
                    let reason = format!("mpirun ended with {status}, see {}", log.display());
                    return MpiEvent::Killed { at, reason };
                }
                // `mpirun` ends after the last rank has, or because a rank has failed. A slot that arrives when
                // there are enough belongs to no rank; dropping it ends its process.
                Some(Arrival::MpirunEnded { .. } | Arrival::Slot { .. }) => {}
                None => std::future::pending().await,
            }
        }
    }

    fn missing(&self) -> String {
        let missing: Vec<_> = self
            .ranks
            .clone()
            .filter(|rank| !self.slots.contains_key(rank))
            .map(|rank| rank.to_string())
            .collect();
        format!(
            "mpirun started no process for rank{} {} of this node within {START_TIMEOUT:?}{}",
            if missing.len() == 1 { "" } else { "s" },
            missing.join(", "),
            self.said()
        )
    }

    fn said(&self) -> String {
        let tail = self.log.as_ref().map(RankLog::tail).unwrap_or_default();
        let lines: Vec<_> =
            tail.into_iter().filter(|line| !line.trim_matches('-').is_empty()).collect();
        if lines.is_empty() { String::new() } else { format!("; it said: {}", lines.join(" ")) }
    }

    /// Returns the environment variables that make the trainer of `rank` a rank of MPI; empty before its slot
    /// has arrived.
    pub fn env(&self, rank: usize) -> Vec<(OsString, OsString)> {
        let env = self.slots.get(&rank).map_or(&[][..], |slot| &slot.env);
        env.iter().map(|(name, value)| (name.into(), value.into())).collect()
    }

    /// Lets the slot of `rank`, which has ended successfully, end as well.
    pub fn release(&mut self, rank: usize) {
        if let Some(release) = self.slots.get_mut(&rank).and_then(|slot| slot.release.take()) {
            // Fails if the slot is gone, which is fine.
            let _ = release.send(0);
        }
    }

    /// Lets all slots end, waits for `mpirun` and its daemons to end, for at most [`END_TIMEOUT`], and kills
    /// what is left.
    pub async fn end(&mut self) {
        for slot in self.slots.values_mut() {
            slot.release.take().map(|release| release.send(1));
        }
        let mut running = self.running.subscribe();
        let _ = timeout(END_TIMEOUT, running.wait_for(|count| *count == 0)).await;
        self.kill();
    }

    fn kill(&mut self) {
        for group in self.groups.drain(..) {
            // Fails if the group is empty, which is fine.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        self.kill();
    }
}

async fn accept(listener: UnixListener, arrivals: UnboundedSender<Arrival>) {
    loop {
        tokio::select! {
            () = arrivals.closed() => return,
            accepted = listener.accept() => {
                match accepted {
                    Ok((stream, _)) => drop(tokio::spawn(serve(stream, arrivals.clone()))),
                    // Most likely there are no more file descriptors.
                    Err(error) => {
                        tracing::debug!("cannot accept a process of mpirun: {error}");
                        sleep(ACCEPT_BACK_OFF).await;
                    }
                }
            }
        }
    }
}

/// Serves the connection of a stand-in, which stays open until the stand-in may end.
async fn serve(mut stream: UnixStream, arrivals: UnboundedSender<Arrival>) {
    match read(&mut stream).await {
        Ok(ToHub::Slot { rank, env }) => {
            let (release, released) = oneshot::channel();
            let _ = arrivals.send(Arrival::Slot { rank, env, release });
            let code = released.await.unwrap_or(1);
            let _ = stream.write_all(&[code]).await;
        }
        Ok(ToHub::Daemon { host, command }) => {
            let _ = arrivals.send(Arrival::Daemon { host, command });
            arrivals.closed().await;
        }
        Err(error) => tracing::warn!("a process of mpirun sent an invalid message: {error}"),
    }
}

async fn read(stream: &mut UnixStream) -> io::Result<ToHub> {
    let body = read_body(stream).await?.ok_or(io::ErrorKind::UnexpectedEof)?;
    control::decode(&body)
}
