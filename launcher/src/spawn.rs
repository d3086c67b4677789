//! Starting trainers, and making sure that none is left behind.
//!
//! A trainer leads a process group of its own, so that Ctrl-C on the terminal reaches the launcher only and a
//! kill reaches all processes that the trainer has started. It does not die with the launcher: when the
//! launcher is killed, trainers see their control connection close, save a checkpoint, and exit by
//! themselves; one that hangs in a collective ends at its own deadline. In a job of several nodes the other
//! launchers kill their ranks then, and the newest checkpoint is what is left.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io::{self, PipeReader};
use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use comm::env::{CONTROL_SOCKET, LOG_FORMAT};
use job::run_dir::RunDir;
use rustix::fs::{Access, access};
use rustix::process::{Pid, Signal, kill_process_group};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use tokio::process::{Child, Command};

use crate::cluster::token::TOKEN;
use crate::descriptors;
use crate::error::LaunchError;
use crate::plan::{Device, RankPlan};

/// The trainer's file name.
const TRAINER: &str = "trainer";

/// What all ranks of a node are started with.
#[derive(Debug, Clone)]
pub struct Spec {
    /// Path of the trainer.
    pub trainer: PathBuf,
    /// Path of the complete configuration.
    pub config: PathBuf,
    /// The run directory.
    pub run_dir: Arc<RunDir>,
    /// Value of the trainer's `--resume`.
    pub resume: String,
    /// Device to compute on.
    pub device: Device,
    /// Number of OpenMP threads of each rank.
    pub threads: usize,
    /// Whether ranks log JSON.
    pub json: bool,
    /// What ranks do.
    pub work: Work,
    /// Environment variables in addition to those that tell a rank its place; variables that the user has set
    /// take precedence.
    pub env: Vec<(&'static str, String)>,
}

/// What ranks are started for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Training.
    Train,
    /// Measuring how long an all-reduce of gradients takes.
    MeasureAllReduce,
}

/// Returns the trainer to start: the one beside the launcher's own executable, else the first on `path`.
///
/// # Errors
/// [`LaunchError::NoTrainer`], naming both places.
pub fn find_trainer(launcher: &Path, path: Option<OsString>) -> Result<PathBuf, LaunchError> {
    let beside = launcher.with_file_name(TRAINER);
    let on_path = path.map_or_else(Vec::new, |path| std::env::split_paths(&path).collect());
    let mut places = std::iter::once(beside.clone())
        .chain(on_path.into_iter().map(|folder| folder.join(TRAINER)));
    places
        .find(|place| place.is_file() && access(place, Access::EXEC_OK).is_ok())
        .ok_or(LaunchError::NoTrainer { beside })
}

/// Starts the trainer of a rank, pinned to its CPUs. It connects to the control server's `socket`; the returned
/// reader gets both its standard output and its standard error. `mpi` holds variables that make it a rank of
/// MPI.
///
/// # Errors
/// When the program cannot be executed, or no more pipes or processes can be created.
pub fn spawn(
    spec: &Spec,
    rank: &RankPlan,
    socket: &Path,
    mpi: Vec<(OsString, OsString)>,
) -> io::Result<(Child, PipeReader)> {
    let (reader, writer) = io::pipe()?;
    let mut command = Command::new(&spec.trainer);
    let unset = spec.env.iter().filter(|(name, _)| std::env::var_os(name).is_none());
    command
        .arg(&spec.config)
        .arg("--run-dir")
        .arg(spec.run_dir.root())
        .args(["--resume", &spec.resume, "--device", spec.device.name()])
        .args((spec.work == Work::MeasureAllReduce).then_some("--measure-all-reduce"))
        .envs(unset.map(|(name, value)| (name, value)))
        .envs(mpi)
        .envs(rank.world.to_env())
        .env(CONTROL_SOCKET, socket)
        .env_remove(TOKEN)
        .env("OMP_NUM_THREADS", spec.threads.to_string())
        // Threads that spin while they wait slow down everything else on a shared machine.
        .env("OMP_WAIT_POLICY", "passive")
        .env("KMP_BLOCKTIME", "0")
        .env(LOG_FORMAT, if spec.json { "json" } else { "pretty" })
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .process_group(0);
    // SAFETY: all that `before_exec` does is async-signal-safe, as it must be between fork and exec.
    unsafe { command.pre_exec(before_exec) };
    let child = pinned_to(&rank.cpus, || command.spawn())?;
    Ok((child, reader))
}

/// Prepares a child process between fork and exec: blocks the signals that are meant for the launcher, and
/// restores the original limit on open files.
pub fn before_exec() -> io::Result<()> {
    block_stop_signals()?;
    descriptors::restore()
}

/// Blocks the signals that ask the launcher to stop. A trainer is asked to stop over its control connection
/// only. Slurm signals every process of a step, so a trainer would be asked twice, which it takes for
/// impatience, or die before it has installed its handlers.
pub fn block_stop_signals() -> io::Result<()> {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: these functions are async-signal-safe; the first initialises what the others use.
    let blocked = unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGUSR1, libc::SIGHUP] {
            libc::sigaddset(set.as_mut_ptr(), signal);
        }
        libc::sigprocmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut())
    };
    if blocked == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Runs `start` with this thread pinned to `cpus`: a process started by it inherits that before its first
/// instruction. Runs `start` unpinned if `cpus` is empty or pinning fails.
pub fn pinned_to<T>(cpus: &[usize], start: impl FnOnce() -> T) -> T {
    let before = match (cpus, sched_getaffinity(None)) {
        ([], _) | (_, Err(_)) => return start(),
        (_, Ok(before)) => before,
    };
    let mut mask = CpuSet::new();
    cpus.iter().for_each(|cpu| mask.set(*cpu));
    if let Err(error) = sched_setaffinity(None, &mask) {
        tracing::warn!("cannot pin a rank to CPUs {cpus:?}: {error}");
        return start();
    }
    let started = start();
    if let Err(error) = sched_setaffinity(None, &before) {
        tracing::warn!("cannot undo pinning: {error}");
    }
    started
}

/// The process groups of ranks that still run. Dropping this kills them.
#[derive(Debug, Default)]
pub struct Groups(HashMap<usize, Pid>);

impl Groups {
    /// Adds the process group `pid`, which `rank` leads.
    pub fn add(&mut self, rank: usize, pid: u32) {
        if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
            self.0.insert(rank, pid);
        }
    }

    /// Removes `rank`, whose process has ended, and kills what it has started and left behind.
    pub fn remove(&mut self, rank: usize) {
        if let Some(group) = self.0.remove(&rank) {
            kill(group);
        }
    }

    /// Kills all process groups.
    pub fn kill(&self) {
        self.0.values().for_each(|group| kill(*group));
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        Self::kill(self);
    }
}

fn kill(group: Pid) {
    // Fails if the group is empty, which is fine.
    let _ = kill_process_group(group, Signal::KILL);
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn executable(path: &Path) {
        fs::write(path, "#!/bin/sh\n").unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    #[test]
    fn the_trainer_beside_the_launcher_wins_over_the_one_on_path() {
        let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let launcher = here.path().join("launcher");
        let path = || Some(there.path().as_os_str().to_owned());
        let error = find_trainer(&launcher, path()).unwrap_err().to_string();
        let beside = here.path().join("trainer");
        assert!(error.contains(&beside.display().to_string()), "{error}");
        assert!(error.contains("PATH"), "{error}");

        executable(&there.path().join("trainer"));
        assert_eq!(find_trainer(&launcher, path()).unwrap(), there.path().join("trainer"));
        fs::write(&beside, "not executable").unwrap();
        assert_eq!(find_trainer(&launcher, path()).unwrap(), there.path().join("trainer"));
        executable(&beside);
        assert_eq!(find_trainer(&launcher, path()).unwrap(), beside);
    }

    #[test]
    fn pinning_holds_for_what_is_started_and_is_undone() {
        let before = sched_getaffinity(None).unwrap();
        let first = (0..CpuSet::MAX_CPU).find(|cpu| before.is_set(*cpu)).unwrap();
        let inside = pinned_to(&[first], || sched_getaffinity(None).unwrap());
        assert!(inside.count() == 1 && inside.is_set(first));
        assert_eq!(sched_getaffinity(None).unwrap(), before);
    }
}
