//! Starts the runs of a study, several at once, each by a launcher of its own.
//!
//! A run that fails does not end the others. When the study is asked to stop, it asks its runs to stop; when
//! it is killed, the kernel does, by SIGTERM.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use job::run_dir::RunDir;
use job::{ExitCode, counted};
use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};
use tokio::process::{Child, Command};
use tokio::task::JoinSet;
use tokio::time::{Instant, interval_at};

use super::expand::Override;
use super::planned::{Planned, RunResources, State};
use super::slots::Slot;
use crate::descriptors;
use crate::plan::Device;
use crate::policy::StopSignal;
use crate::progress::clock;
use crate::signals::Signals;
use crate::spawn::pinned_to;

/// Interval of reports on how far runs are.
const STATUS_INTERVAL: Duration = Duration::from_secs(300);

/// Executes the runs of a study.
pub struct Runner<'a> {
    /// Path of this program.
    pub launcher: PathBuf,
    /// Device and ranks of the runs.
    pub resources: RunResources<'a>,
    /// Slots for runs, one run per slot at a time.
    pub slots: &'a [Slot],
    /// Folder of logs of what runs write to their terminal, one file per run.
    pub logs: PathBuf,
}

/// How the execution of a study ended.
#[derive(Debug, Default)]
pub struct Ended {
    /// The runs that failed, by index, and why.
    pub failed: Vec<(usize, Failure)>,
    /// Whether the study, or one of its runs, was asked to stop.
    pub stopped: bool,
}

/// Why a run failed.
#[derive(Debug)]
pub struct Failure {
    /// Exit code of the run's launcher.
    pub exit_code: ExitCode,
    /// Reason in one line.
    pub reason: String,
}

/// A run in its slot.
struct Running {
    run: usize,
    pid: Option<Pid>,
    /// Length of `events.jsonl` before the run was started.
    events_bytes: u64,
}

impl Runner<'_> {
    /// Executes those of `runs` that are not done, and keeps their states up to date.
    pub async fn run(&self, runs: &mut [Planned], signals: &mut Signals) -> Ended {
        let left: Vec<usize> =
            (0..runs.len()).filter(|run| runs[*run].state != State::Done).collect();
        let mut waiting = left.into_iter();
        let mut free: Vec<usize> = (0..self.slots.len()).rev().collect();
        let mut running: HashMap<usize, Running> = HashMap::new();
        let mut ends: JoinSet<(usize, io::Result<ExitStatus>)> = JoinSet::new();
        let mut ended = Ended::default();
        let mut asked = false;
        let mut status = interval_at(Instant::now() + STATUS_INTERVAL, STATUS_INTERVAL);
        loop {
            while !ended.stopped && !free.is_empty() {
                let Some(run) = waiting.next() else { break };
                let events_bytes = events_bytes(&runs[run].root);
                match self.start(&runs[run], &self.slots[free[free.len() - 1]]) {
                    Ok(mut child) => {
                        let slot = free.pop().unwrap_or_default();
                        let pid = child.id().and_then(|pid| Pid::from_raw(pid as i32));
                        running.insert(slot, Running { run, pid, events_bytes });
                        ends.spawn(async move { (slot, child.wait().await) });
                    }
                    Err(error) => {
                        let reason = format!("its launcher cannot be started: {error}");
                        let failure = Failure { exit_code: ExitCode::Setup, reason };
                        self.note(runs, run, failure, &mut ended);
                    }
                }
            }
            if running.is_empty() {
                return ended;
            }
            tokio::select! {
                signal = signals.next() => {
                    ended.stopped = true;
                    pass_on(signal, asked, running.values());
                    asked = true;
                }
                _ = status.tick() => tell(runs, running.values()),
                Some(Ok((slot, status))) = ends.join_next() => {
                    if let Some(it) = running.remove(&slot) {
                        free.push(slot);
                        self.conclude(runs, &it, status, &mut ended);
                    }
                }
            }
        }
    }

    fn start(&self, planned: &Planned, slot: &Slot) -> io::Result<Child> {
        let log = File::options().append(true).create(true).open(self.log(planned))?;
        let mut command = Command::new(&self.launcher);
        let flag = match self.resources.device {
            Device::Cpu => "--cpu",
            Device::Cuda => "--gpus",
        };
        command.args([flag, &self.resources.ranks.to_string(), "--nodes", "1", "--run-dir"]);
        command.arg(&planned.root);
        for argument in planned.spec.overrides.iter().map(Override::argument) {
            command.args(["--set", &argument]);
        }
        if planned.falls_back {
            let keys = ["dataset=synthetic", "image_size=null", "normalization=null"];
            command.args(keys.iter().flat_map(|key| ["--set".to_owned(), format!("data.{key}")]));
        }
        command
            .arg(&planned.spec.config)
            .envs(slot.devices.iter().map(|devices| ("CUDA_VISIBLE_DEVICES", devices)))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C reaches the study only, which passes it on.
            .process_group(0);
        // SAFETY: system calls, which may be made between fork and exec.
        unsafe {
            command.pre_exec(|| {
                set_parent_process_death_signal(Some(Signal::TERM))?;
                descriptors::restore()
            });
        }
        let child = pinned_to(&slot.cpus, || command.spawn())?;
        let verb = if planned.state == State::Begun { "resumes" } else { "starts" };
        tracing::info!("{} {verb}: {}", planned.spec.name, counted(planned.steps as usize, "step"));
        Ok(child)
    }

    fn log(&self, planned: &Planned) -> PathBuf {
        self.logs.join(format!("{}.log", planned.spec.name))
    }

    fn conclude(
        &self,
        runs: &mut [Planned],
        it: &Running,
        status: io::Result<ExitStatus>,
        ended: &mut Ended,
    ) {
        let planned = &mut runs[it.run];
        let code = status.as_ref().ok().and_then(ExitStatus::code);
        let exit_code = code.and_then(|code| ExitCode::from_code(u8::try_from(code).ok()?));
        planned.refresh();
        let failure = match exit_code {
            Some(ExitCode::Done) => {
                // Even without a summary, which may have been lost after the last checkpoint.
                planned.state = State::Done;
                let seconds = Duration::from_secs_f64(planned.results.train_seconds());
                let best = planned.results.best_test_accuracy().unwrap_or(f64::NAN) * 100.0;
                let name = &planned.spec.name;
                tracing::info!(
                    "{name}: done in {}, best test accuracy {best:.2} %",
                    clock(seconds)
                );
                return;
            }
            Some(ExitCode::Stopped) => {
                // For example, the time of a Slurm job is up, which each run knows by itself.
                if !ended.stopped {
                    tracing::warn!(
                        "{}: stopped from outside; no more runs are started",
                        planned.spec.name
                    );
                }
                ended.stopped = true;
                return;
            }
            exit_code => {
                let events = RunDir::at(&planned.root).events_path();
                let killed = status.as_ref().ok().filter(|status| status.code().is_none());
                let reason = verdict_after(&events, it.events_bytes)
                    .or_else(|| killed.map(|status| format!("its launcher was killed: {status}")))
                    .or_else(|| last_line(&self.log(planned)))
                    .unwrap_or_else(|| match &status {
                        Ok(status) => status.to_string(),
                        Err(error) => error.to_string(),
                    });
                Failure { exit_code: exit_code.unwrap_or(ExitCode::RankFailed), reason }
            }
        };
        self.note(runs, it.run, failure, ended);
    }

    fn note(&self, runs: &[Planned], run: usize, failure: Failure, ended: &mut Ended) {
        tracing::error!(
            "{} failed with exit code {}: {}; see {}; the other runs continue",
            runs[run].spec.name,
            failure.exit_code as u8,
            failure.reason,
            self.log(&runs[run]).display()
        );
        ended.failed.push((run, failure));
    }
}

fn tell<'a>(runs: &mut [Planned], running: impl Iterator<Item = &'a Running>) {
    for it in running {
        let planned = &mut runs[it.run];
        planned.refresh();
        let (name, done) = (&planned.spec.name, planned.results.epochs.len());
        tracing::info!("{name}: {done} of {}", counted(planned.epochs, "epoch"));
    }
}

/// Passes `signal` on to the runs. `again`: it is not the first signal. Under `srun` Ctrl-C also reaches the
/// runs directly, and a run stops at once at its second SIGINT, so the first SIGINT of a study is passed on
/// as SIGTERM.
fn pass_on<'a>(signal: StopSignal, again: bool, running: impl Iterator<Item = &'a Running>) {
    tracing::warn!(
        "{}: runs save a checkpoint and stop; Ctrl-C (again) stops at once",
        signal.name()
    );
    let signal = match signal {
        StopSignal::Interrupt if again => Signal::INT,
        _ => Signal::TERM,
    };
    for pid in running.filter_map(|it| it.pid) {
        // An error means that the run has just ended, which is what is wanted.
        let _ = kill_process(pid, signal);
    }
}

fn events_bytes(root: &Path) -> u64 {
    RunDir::at(root).events_path().metadata().map_or(0, |file| file.len())
}

/// Returns why a run ended, from the verdict that its launcher appended to `events` after the first `start`
/// bytes.
fn verdict_after(events: &Path, start: u64) -> Option<String> {
    let text = std::fs::read(events).ok()?;
    let new = text.get(usize::try_from(start).ok()?..)?;
    let last = new.split(|byte| *byte == b'\n').rfind(|line| !line.is_empty())?;
    let event: serde_json::Value = serde_json::from_slice(last).ok()?;
    (event["event"] == "verdict").then(|| event["reason"].as_str().map(str::to_owned))?
}

fn last_line(log: &Path) -> Option<String> {
    let text = std::fs::read_to_string(log).ok()?;
    text.lines().rfind(|line| !line.trim().is_empty()).map(|line| line.trim().to_owned())
}
