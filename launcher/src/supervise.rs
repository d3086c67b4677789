//! Runs the job and does what [`crate::policy`] decides, on this node and through the other nodes'
//! launchers.
//!
//! The tasks that wait for processes, serve control connections, and read connections to other nodes send
//! messages to one event loop, which alone decides and acts.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use comm::Blame;
use comm::control::ToLauncher;
use job::config::{self, Config};
use job::run_dir::Resume;
use tokio::time::{Instant, sleep_until};

use crate::cluster::leader::{FromNode, Leader};
use crate::cluster::message::{RankEvent, ToMember};
use crate::console::Console;
use crate::control_server::{KeyValueStore, StoreLocation};
use crate::error::LaunchError;
use crate::events::{Event as Record, EventLog};
use crate::local::{Local, LocalRanks, LogTail, MpiRole};
use crate::plan::Plan;
use crate::policy::{self, Decision, Event, Job, Limits, Outcome, Walltime};
use crate::progress::{Progress, Update, clock};
use crate::signals::Signals;
use crate::spawn::Spec;

/// Time into an attempt before which no warning is given that the run will take too long: the first steps say
/// little of its speed.
const KNOWN_AFTER: Duration = Duration::from_secs(10);

/// A job, as it is run by the launcher of its only node or of node 0.
pub struct Supervisor<'a> {
    /// The configuration of the run.
    pub config: &'a Config,
    /// Which ranks there are, and on which devices.
    pub plan: &'a Plan,
    /// What the ranks of this node are started with; `resume` is set for each attempt.
    pub spec: Spec,
    /// What this node has to provide for MPI, with the host names that the nodes had at first.
    pub mpi: MpiRole,
    /// Where the first attempt starts from.
    pub resume: &'a Resume,
    /// How long ranks may be silent, and how long they may take to stop.
    pub limits: Limits,
    /// Time from now until the job is ended from outside, if it is.
    pub ends_in: Option<Duration>,
    /// How often the job may be started again.
    pub max_restarts: u32,
    /// The terminal.
    pub console: &'a Console,
}

/// How the job ended.
pub struct Report {
    /// How it ended, and whose fault that was.
    pub outcome: Outcome,
    /// What is known of the ranks of the last attempt.
    pub job: Job,
    /// The log file of each rank and its last lines.
    pub logs: Vec<LogTail>,
    /// How often the job was started again.
    pub restarts: u32,
    /// Each node's name in the last attempt; empty when there is one node.
    pub hosts: Vec<String>,
}

struct Attempt<'a> {
    started: Instant,
    local: LocalRanks<'a>,
    /// The values that ranks of all nodes publish for each other.
    store: KeyValueStore,
    others: Option<&'a mut Leader>,
    job: Job,
    restarts: u32,
    progress: Progress,
    /// Whether a warning was given that the run will not be done in time.
    warned: bool,
}

impl Supervisor<'_> {
    /// Runs the job to its end, restarts included.
    ///
    /// # Errors
    /// [`LaunchError`] when ranks cannot be started, here or on another node, or a lost node does not come
    /// back; then no rank of this node is left behind.
    pub async fn run(
        &self,
        mut others: Option<&mut Leader>,
        events: &mut EventLog,
        signals: &mut Signals,
    ) -> Result<Report, LaunchError> {
        let mut walltime = Walltime::new(self.ends_in);
        let mut restarts = 0;
        let mut mpi = self.mpi.clone();
        loop {
            let started = Instant::now();
            // Read for each attempt: a lost node may come back as another machine.
            let hosts = others.as_deref().map_or_else(Vec::new, Leader::hosts);
            let leader = others.as_deref_mut();
            let (outcome, job, logs) =
                self.attempt(signals, events, leader, &mpi, restarts, walltime).await?;
            let report = Report { outcome, job, logs, restarts, hosts };
            let stopping = report.job.stop_reason().is_some();
            let again = policy::restart(&report.outcome, stopping, restarts, self.max_restarts);
            if let Err(why_not) = again {
                tracing::debug!("no restart: {why_not}");
                return Ok(report);
            }
            // A signal may have come while the last ranks were ending.
            if let Some(signal) = signals.try_next().await {
                tracing::warn!("{}: no restart", signal.name());
                return Ok(report);
            }
            if let Some(reason) = others.as_deref().and_then(Leader::stop_asked) {
                tracing::warn!("{reason}: no restart");
                return Ok(report);
            }
            let failure = report.job.in_a_line(&report.outcome);
            let why = format!("restart {} of {}: {failure}", restarts + 1, self.max_restarts);
            tracing::warn!("{why}; all ranks start again from the newest checkpoint");
            events.record(&Record::Restarted { restarts: restarts + 1, reason: &why });
            if let Some(leader) = others.as_deref_mut().filter(|leader| leader.has_lost()) {
                tokio::select! {
                    gathered = self.gather_again(leader) => mpi = gathered?,
                    signal = signals.next() => {
                        tracing::warn!("{}: no restart", signal.name());
                        return Ok(report);
                    }
                }
            }
            restarts += 1;
            walltime = report.job.walltime().restarted(started.elapsed());
        }
    }

    /// Waits until lost nodes have joined again, and returns what this node then has to provide for MPI.
    async fn gather_again(&self, leader: &mut Leader) -> Result<MpiRole, LaunchError> {
        leader.gather().await?;
        if leader.layout() != self.plan.layout {
            let text = "a node rejoined with a different number of ranks".to_owned();
            return Err(LaunchError::Cluster { exit_code: job::ExitCode::Usage, text });
        }
        let mpi = match &self.mpi {
            MpiRole::Mpirun(mpirun) => MpiRole::Mpirun(mpirun.on(&leader.hosts())?),
            other => other.clone(),
        };
        self.welcome(leader);
        Ok(mpi)
    }

    /// Sends the run directory and the configuration to the other nodes.
    pub fn welcome(&self, leader: &Leader) {
        leader.welcome(self.spec.run_dir.root().to_owned(), config::to_yaml(self.config));
    }

    /// Returns the value of the trainer's `--resume` for an attempt. A restart goes on from this run's newest
    /// checkpoint or, if it has none, from where the run started.
    fn resume_for(&self, restarts: u32) -> String {
        let resume = if restarts > 0 { &Resume::Auto } else { self.resume };
        resume.to_string()
    }

    async fn attempt(
        &self,
        signals: &mut Signals,
        events: &mut EventLog,
        mut others: Option<&mut Leader>,
        mpi: &MpiRole,
        restarts: u32,
        walltime: Walltime,
    ) -> Result<(Outcome, Job, Vec<LogTail>), LaunchError> {
        let resume = self.resume_for(restarts);
        if let Some(leader) = &mut others {
            leader.start(resume.clone());
        }
        let spec = Spec { resume, ..self.spec.clone() };
        let console = Some(self.console.clone());
        let local = LocalRanks::start(&self.plan.ranks, spec, StoreLocation::Local, mpi, console)?;
        let mut attempt = Attempt {
            started: Instant::now(),
            store: local.store(),
            local,
            restarts,
            others,
            job: Job::new(self.plan.world_size(), self.limits, walltime),
            progress: Progress::new(self.console.clone(), self.plan.total_steps),
            warned: false,
        };
        let outcome = loop {
            let event = match attempt.next(signals, events).await {
                Ok(Some(event)) => event,
                Ok(None) => continue,
                Err(error) => {
                    attempt.kill();
                    return Err(error);
                }
            };
            let (decision, reason) = attempt.job.on(&event, attempt.started.elapsed());
            if let Event::Exited { rank, exit, .. } = event {
                events.record(&Record::exited(rank, exit));
            }
            match decision {
                Decision::Wait => tracing::debug!("{reason}"),
                Decision::Warn => tracing::warn!("{reason}"),
                Decision::AskToStop => attempt.ask_to_stop(&reason, events),
                Decision::Kill => {
                    attempt.kill();
                    tracing::warn!("{reason}; killing all ranks");
                    events.record(&Record::Killed { reason: &reason });
                }
                Decision::Finish(outcome) => break outcome,
            }
        };
        attempt.progress.finish();
        let logs = attempt.last_output().await;
        Ok((outcome, attempt.job, logs))
    }
}

impl Attempt<'_> {
    /// Waits for the next event and returns it; `None` when it needs no decision.
    ///
    /// # Errors
    /// [`LaunchError::Cluster`] when another node cannot start its part.
    async fn next(
        &mut self,
        signals: &mut Signals,
        events: &mut EventLog,
    ) -> Result<Option<Event>, LaunchError> {
        let deadline = self.job.deadline().map(|deadline| self.started + deadline);
        let overdue = async {
            match deadline {
                Some(deadline) => sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        let others = async {
            match &mut self.others {
                Some(leader) => leader.next(&self.store).await,
                None => std::future::pending().await,
            }
        };
        Ok(tokio::select! {
            biased;
            signal = signals.next() => Some(Event::Signal(signal)),
            from = others => return self.hear(from, events),
            local = self.local.next() => match local {
                Local::RankEvent(rank_event) => self.interpret(rank_event, events),
                Local::Daemon { host, command } => self.start_daemon(&host, command),
                Local::MpirunKilled { at, reason } => {
                    let at = at.saturating_duration_since(self.started);
                    Some(Event::MpirunKilled { reason, at })
                }
            },
            () = overdue => Some(Event::Tick),
        })
    }

    fn hear(
        &mut self,
        from: FromNode,
        events: &mut EventLog,
    ) -> Result<Option<Event>, LaunchError> {
        Ok(match from {
            FromNode::RankEvent(rank_event) => self.interpret(rank_event, events),
            FromNode::StopAsked(reason) => Some(Event::StopAsked { reason }),
            FromNode::StopNow(reason) => Some(Event::StopNow { reason }),
            FromNode::Lost { ranks, reason } => {
                tracing::error!("{reason}");
                events.record(&Record::NodeLost { reason: &reason });
                Some(Event::NodeLost { ranks, reason })
            }
            FromNode::Reported => None,
            FromNode::Unable(unable) => return Err(unable.into()),
        })
    }

    fn start_daemon(&self, host: &str, command: String) -> Option<Event> {
        let started = match &self.others {
            Some(others) => others.start_daemon(host, command),
            None => Err(format!("mpirun asked for a daemon on {host}, but the job has one node")),
        };
        let message = started.err()?;
        let exit_code = job::ExitCode::Setup as u8;
        Some(Event::Failed { rank: 0, exit_code, message, blame: Blame::Nobody })
    }

    fn interpret(&mut self, rank_event: RankEvent, events: &mut EventLog) -> Option<Event> {
        let now = self.started.elapsed();
        let (rank, said) = match rank_event {
            RankEvent::Spawned { rank, pid } => {
                events.record(&Record::Spawned { rank, pid, restarts: self.restarts });
                return None;
            }
            RankEvent::Refused { rank, reason } => return Some(Event::Refused { rank, reason }),
            RankEvent::Exited { rank, exit, ago_ms } => {
                let at = now.saturating_sub(Duration::from_millis(ago_ms));
                return Some(Event::Exited { rank, exit, at });
            }
            RankEvent::Said { rank, message } => (rank, message),
        };
        match said {
            ToLauncher::Heartbeat => Some(Event::Heartbeat { rank }),
            ToLauncher::State { phase, epoch, step } => {
                Some(Event::Reported { rank, phase, epoch, step })
            }
            ToLauncher::Failed { exit_code, message, blame } => {
                Some(Event::Failed { rank, exit_code, message, blame })
            }
            ToLauncher::Progress { epoch, epochs, step, steps, loss, accuracy, images_per_s } => {
                let update = Update { epoch, epochs, step, steps, loss, accuracy, images_per_s };
                let left = self.progress.update(&update, now);
                self.warn_of_the_end(left, now);
                None
            }
            // The control server handles these.
            ToLauncher::Hello { .. } | ToLauncher::Put { .. } | ToLauncher::Get { .. } => None,
        }
    }

    /// Warns once, as soon as the speed is known, if the run will not be done before its time is up.
    fn warn_of_the_end(&mut self, left: Option<Duration>, now: Duration) {
        let walltime = self.job.walltime();
        let (Some(left), Some(stop_at), false) = (left, walltime.stop_at(), self.warned) else {
            return;
        };
        let time = stop_at.saturating_sub(now);
        if left > time && now > KNOWN_AFTER {
            self.warned = true;
            tracing::warn!(
                "at this speed the run needs {} more and has {}: it will save a checkpoint {} before \
                 its time limit and stop; it can be resumed from there",
                clock(left),
                clock(time),
                clock(walltime.margin()),
            );
        }
    }

    fn ask_to_stop(&mut self, reason: &str, events: &mut EventLog) {
        self.progress.finish();
        tracing::warn!(
            "{reason}: saving a checkpoint at the next step and stopping; Ctrl-C (again) stops at once"
        );
        self.local.stop(reason);
        if let Some(leader) = &self.others {
            leader.broadcast(&ToMember::Stop { reason: reason.to_owned() });
        }
        events.record(&Record::StopRequested { reason });
    }

    fn kill(&mut self) {
        self.progress.finish();
        self.local.kill();
        if let Some(leader) = &self.others {
            leader.broadcast(&ToMember::Kill);
        }
    }

    /// Waits for the other nodes' reports, and returns the log of each rank and its last lines.
    async fn last_output(&mut self) -> Vec<LogTail> {
        let mut logs: BTreeMap<usize, LogTail> =
            self.local.end().await.into_iter().enumerate().collect();
        if let Some(leader) = &mut self.others {
            logs.append(&mut leader.end_attempt(&self.store).await);
        }
        let unknown = || (PathBuf::from("a log on the lost node"), Vec::new());
        let ranks = 0..self.job.ranks().len();
        ranks.map(|rank| logs.remove(&rank).unwrap_or_else(unknown)).collect()
    }
}
