//! Runs the ranks and does what [`crate::policy`] decides.
//!
//! Tasks that wait for processes, and the coordinator's, send messages to one dispatcher; only that
//! one decides and acts.

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use comm::control::ToLauncher;
use job::run_dir::{Resume, RunDir};
use tokio::process::Child;
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::time::{Instant, sleep_until, timeout};

use crate::console::{Console, Style};
use crate::coordinator::{Coordinator, Message};
use crate::error::LaunchError;
use crate::events::{Event as Record, EventLog};
use crate::logs::RankLog;
use crate::plan::Plan;
use crate::policy::{self, Decision, Event, Exit, Job, Limits, Outcome};
use crate::progress::{Progress, Update};
use crate::signals::Signals;
use crate::spawn::{self, Groups, Spec};

/// How long the last words of a rank whose process has ended are waited for.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// How long the rest of the ranks' output is waited for at the end.
const LAST_OUTPUT: Duration = Duration::from_secs(1);

/// What is run.
pub struct Supervisor<'a> {
    /// The ranks.
    pub plan: &'a Plan,
    /// The program of each.
    pub trainer: &'a Path,
    /// Where the run is kept.
    pub run_dir: &'a RunDir,
    /// Where the run starts from.
    pub resume: &'a Resume,
    /// How long to wait for what.
    pub limits: Limits,
    /// How often the job may be started again.
    pub max_restarts: u32,
    /// The terminal.
    pub console: &'a Console,
}

/// How the job ended.
pub struct Report {
    /// In one word.
    pub outcome: Outcome,
    /// The ranks of the last attempt.
    pub job: Job,
    /// The log of each and its last lines.
    pub logs: Vec<(PathBuf, Vec<String>)>,
    /// How often the job was started again.
    pub restarts: u32,
}

struct Exited {
    rank: usize,
    status: ExitStatus,
    at: Instant,
}

/// The processes of one attempt and the channels that tell of them.
struct Attempt {
    started: Instant,
    groups: Groups,
    coordinator: Coordinator,
    messages: UnboundedReceiver<Message>,
    exits: UnboundedReceiver<Exited>,
    logs: Vec<RankLog>,
}

impl Supervisor<'_> {
    /// Runs the job to its end, restarts included.
    ///
    /// # Errors
    /// [`LaunchError`] when ranks cannot be started; then none is left behind.
    pub async fn run(&self, events: &mut EventLog) -> Result<Report, LaunchError> {
        let mut signals = Signals::catch().map_err(LaunchError::system("catch signals"))?;
        let mut restarts = 0;
        loop {
            let (outcome, job, logs) = self.attempt(&mut signals, events, restarts).await?;
            let stopping = job.stop_reason().is_some();
            let (again, why) = policy::restart(&outcome, stopping, restarts, self.max_restarts);
            if !again {
                tracing::debug!("no restart: {why}");
                return Ok(Report { outcome, job, logs, restarts });
            }
            restarts += 1;
            tracing::warn!("{why}; all ranks start again from the newest checkpoint");
            events.record(&Record::Restarted { restarts, reason: &why });
        }
    }

    async fn attempt(
        &self,
        signals: &mut Signals,
        events: &mut EventLog,
        restarts: u32,
    ) -> Result<(Outcome, Job, Vec<(PathBuf, Vec<String>)>), LaunchError> {
        let mut attempt = self.start(events, restarts)?;
        let mut job = Job::new(self.plan.world_size(), self.limits);
        let mut progress = Progress::new(self.console.clone(), self.plan.total_steps);
        let outcome = loop {
            let event = attempt.next(signals, job.deadline(), &mut progress).await;
            if let Event::Exited { rank, exit, .. } = event {
                attempt.groups.remove(rank);
                events.record(&Record::exited(rank, exit));
            }
            let (decision, reason) = job.on(&event, attempt.started.elapsed());
            match decision {
                Decision::Wait => tracing::debug!("{reason}"),
                Decision::AskToStop => {
                    progress.finish();
                    attempt.ask_to_stop(&reason, events);
                }
                Decision::Kill => {
                    progress.finish();
                    attempt.groups.kill();
                    events.record(&Record::Killed { reason: &reason });
                }
                Decision::Finish(outcome) => break outcome,
            }
        };
        progress.finish();
        Ok((outcome, job, attempt.last_output().await))
    }

    fn start(&self, events: &mut EventLog, restarts: u32) -> Result<Attempt, LaunchError> {
        let world_size = self.plan.world_size();
        let (message_sender, messages) = mpsc::unbounded_channel();
        let (exit_sender, exits) = mpsc::unbounded_channel();
        let coordinator = Coordinator::listen(world_size, message_sender)
            .map_err(LaunchError::system("open a control socket"))?;
        let mut attempt = Attempt {
            started: Instant::now(),
            groups: Groups::new(world_size),
            coordinator,
            messages,
            exits,
            logs: Vec::new(),
        };
        let socket = attempt.coordinator.socket().to_owned();
        let spec = self.spec(&socket, restarts);
        for plan in &self.plan.ranks {
            let rank = plan.world.rank;
            let (child, output) = spawn::spawn(&spec, plan).map_err(|source| {
                LaunchError::Spawn { rank, trainer: self.trainer.to_owned(), source }
            })?;
            let pid = child.id().unwrap_or_default();
            attempt.groups.add(rank, pid);
            let console = (rank == 0).then(|| self.console.clone());
            let log = RankLog::start(rank, self.run_dir.log_path(rank), output, console)
                .map_err(LaunchError::system("start a thread"))?;
            attempt.logs.push(log);
            let last_words = attempt.coordinator.drained(rank);
            tokio::spawn(watch(child, rank, last_words, exit_sender.clone()));
            events.record(&Record::Spawned { rank, pid, restarts });
        }
        Ok(attempt)
    }

    fn spec<'a>(&'a self, socket: &'a Path, restarts: u32) -> Spec<'a> {
        // A restart goes on from what this run has saved; from where it started, if it has nothing.
        let saved = self.run_dir.checkpoints_dir().join("latest").exists();
        let resume = if restarts > 0 && saved { &Resume::Auto } else { self.resume };
        Spec {
            trainer: self.trainer,
            run_dir: self.run_dir,
            resume: resume.to_string(),
            device: self.plan.device,
            threads: self.plan.threads_per_rank,
            socket,
            json: self.console.style() == Style::Json,
        }
    }
}

impl Attempt {
    async fn next(
        &mut self,
        signals: &mut Signals,
        deadline: Option<Duration>,
        progress: &mut Progress,
    ) -> Event {
        let started = self.started;
        loop {
            let overdue = async {
                match deadline {
                    Some(deadline) => sleep_until(started + deadline).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                signal = signals.next() => return Event::Signal(signal),
                // Before exits: a rank's last words explain its end.
                Some(message) = self.messages.recv() => {
                    if let Some(event) = interpret(message, started.elapsed(), progress) {
                        return event;
                    }
                }
                Some(exited) = self.exits.recv() => return exited.event(started),
                () = overdue => return Event::Tick,
            }
        }
    }

    fn ask_to_stop(&self, reason: &str, events: &mut EventLog) {
        tracing::warn!(
            "{reason}: saving a checkpoint at the next step and stopping; Ctrl-C (again) stops at once"
        );
        self.coordinator.stop(reason);
        events.record(&Record::StopRequested { reason });
    }

    async fn last_output(&mut self) -> Vec<(PathBuf, Vec<String>)> {
        let ended = async {
            for log in &mut self.logs {
                log.ended().await;
            }
        };
        if timeout(LAST_OUTPUT, ended).await.is_err() {
            tracing::warn!("something that a rank started still holds its output open");
        }
        self.logs.iter().map(|log| (log.path().to_owned(), log.tail())).collect()
    }
}

impl Exited {
    fn event(&self, started: Instant) -> Event {
        let exit = match (self.status.code(), self.status.signal()) {
            (Some(code), _) => Exit::Code(code),
            (None, signal) => Exit::Signal(signal.unwrap_or_default()),
        };
        Event::Exited { rank: self.rank, exit, at: self.at.saturating_duration_since(started) }
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
    // A rank that never connected has no last words, so this has a limit.
    let _ = timeout(LAST_WORDS, last_words).await;
    // Nobody listens any more when the attempt was given up.
    let _ = exits.send(Exited { rank, status, at });
}

fn interpret(message: Message, now: Duration, progress: &mut Progress) -> Option<Event> {
    let (rank, said) = match message {
        Message::Refused { rank, reason } => return Some(Event::Refused { rank, reason }),
        Message::Said { rank, message } => (rank, message),
    };
    match said {
        ToLauncher::State { phase, epoch, step } => {
            Some(Event::Reported { rank, phase, epoch, step })
        }
        ToLauncher::Failed { exit_code, message } => {
            Some(Event::Failed { rank, exit_code, message })
        }
        ToLauncher::Progress { epoch, epochs, step, steps, loss, accuracy, images_per_s } => {
            let update = Update { epoch, epochs, step, steps, loss, accuracy, images_per_s };
            progress.update(&update, now);
            None
        }
        // The coordinator takes the others.
        ToLauncher::Hello { .. } | ToLauncher::Put { .. } | ToLauncher::Get { .. } => None,
    }
}
