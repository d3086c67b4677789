//! The part of a node other than node 0: joins node 0's launcher and does what that says.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use comm::control::ToLauncher;
use job::ExitCode;
use job::config::{self, Config};
use job::run_dir::RunDir;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Instant, timeout, timeout_at};

use super::Cluster;
use super::leader::CLOSE_TIMEOUT;
use super::message::{Introduction, RankEvent, ToLeader, ToMember};
use super::reach::{Link, reach};
use crate::control_server::StoreLocation;
use crate::error::LaunchError;
use crate::local::{Local, LocalRanks, MpiRole};
use crate::plan::{Layout, Plan};
use crate::policy::{ECHO, StopSignal};
use crate::signals::Signals;
use crate::spawn::{Spec, Work};

/// Maximum length of a line at a log's end, in bytes as JSON; longer lines are cut, so that the end of the
/// log fits a frame.
const MAX_TAIL_LINE_BYTES: usize = 2500;

/// Maximum number of characters of a rank's message; longer ones are cut. A character takes at most six bytes
/// as JSON, so that the message fits a frame.
const MAX_MESSAGE: usize = 8000;

/// A node other than node 0, and what it brings to the job.
pub struct Member<'a> {
    /// The nodes of the job.
    pub cluster: &'a Cluster,
    /// The introduction of this launcher.
    pub me: Introduction,
    /// Path of the trainer.
    pub trainer: &'a Path,
    /// Whether ranks log JSON.
    pub json: bool,
    /// What ranks are started for.
    pub work: Work,
    /// How often this node may join again after it has lost node 0.
    pub max_restarts: u32,
    /// Plans the ranks of this node, once it is known how many each node has.
    pub plan: &'a dyn Fn(Layout) -> Result<Plan, LaunchError>,
}

/// What a signal at a member means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Request {
    /// Ask node 0 to stop the job.
    Stop,
    /// Stop at once: somebody will not wait any longer.
    StopNow,
}

/// When this launcher was first asked to stop, if it was.
#[derive(Debug, Default)]
struct Requests(Option<Instant>);

impl Requests {
    /// Takes note of a signal and returns what it means. Only a Ctrl-C more than [`ECHO`] after the first
    /// signal means to stop at once: Slurm and srun send their signals more than once, and Ctrl-C may come by
    /// two ways.
    fn take(&mut self, signal: StopSignal) -> Request {
        let first = *self.0.get_or_insert_with(Instant::now);
        match signal {
            StopSignal::Interrupt if first.elapsed() > ECHO => Request::StopNow,
            _ => Request::Stop,
        }
    }
}

/// What node 0 says once every node is there: see [`ToMember::Welcome`].
struct Welcome {
    layout: Vec<usize>,
    run_dir: PathBuf,
    config: String,
}

/// Why this node's part has ended.
enum End {
    Finished(ExitCode, String),
    Lost(String),
}

impl Member<'_> {
    /// Takes part until node 0's launcher says how the job has ended, and returns its exit code and verdict.
    /// Joins again after node 0 is lost, at most `max_restarts` times.
    ///
    /// # Errors
    /// [`LaunchError`] when node 0 cannot be joined, or is lost.
    pub async fn run(&self, signals: &mut Signals) -> Result<(ExitCode, String), LaunchError> {
        let mut restarts = 0;
        let mut requests = Requests::default();
        loop {
            let mut link = tokio::select! {
                link = self.join() => link?,
                signal = signals.next() => return Ok(stopped_early(signal.name())),
            };
            tracing::info!("joined {}; waiting for the other nodes", self.cluster.rendezvous);
            let followed = self.follow(&mut link, signals, &mut requests).await;
            if let Err(error) = &followed {
                link.connection.send(ToLeader::Decline(super::unable(self.cluster, error)));
            }
            link.connection.close().await;
            let gone = async { while receive(&mut link.incoming).await.is_ok() {} };
            match followed {
                // Waits for node 0's launcher to close the connection, so that all launchers end at the same
                // moment.
                Ok(End::Finished(exit_code, text)) => {
                    let _ = timeout(CLOSE_TIMEOUT, gone).await;
                    return Ok((exit_code, text));
                }
                Err(error) => {
                    let _ = timeout(CLOSE_TIMEOUT, gone).await;
                    return Err(error);
                }
                Ok(End::Lost(reason)) => {
                    let text =
                        format!("node 0 ({}) is lost: {reason}", self.cluster.rendezvous.host);
                    if requests.0.is_some() {
                        let text = format!("asked to stop; {text}");
                        return Ok((ExitCode::Stopped, text));
                    }
                    if restarts >= self.max_restarts {
                        return Err(LaunchError::Cluster { exit_code: ExitCode::RankFailed, text });
                    }
                    restarts += 1;
                    tracing::warn!("{text}; joining again");
                }
            }
        }
    }

    /// Connects to node 0 and introduces this node.
    async fn join(&self) -> Result<Link, LaunchError> {
        let link = reach(self.cluster, self.cluster.join_timeout).await?;
        let me = Introduction { unix_seconds: super::unix_seconds(), ..self.me.clone() };
        link.connection.send(ToLeader::Join(Box::new(me)));
        Ok(link)
    }

    async fn follow(
        &self,
        link: &mut Link,
        signals: &mut Signals,
        requests: &mut Requests,
    ) -> Result<End, LaunchError> {
        let welcome = match self.wait_for_all(link, signals, requests).await {
            Ok(welcome) => welcome,
            Err(end) => return Ok(end),
        };
        let layout =
            Layout { node_rank: self.me.node_rank, ranks_per_node: welcome.layout.clone() };
        let plan = (self.plan)(layout)?;
        let folder =
            tempfile::tempdir().map_err(LaunchError::system("create a temporary folder"))?;
        let mut spec = self.spec(&plan, welcome, folder.path(), link)?;
        loop {
            let message = tokio::select! {
                message = receive(&mut link.incoming) => message,
                signal = signals.next() => match ask_to_stop(requests, signal, link) {
                    Some(end) => return Ok(end),
                    None => continue,
                },
            };
            match message {
                Ok(ToMember::Start { resume }) => {
                    spec.resume = resume;
                    let ended = self.attempt(&plan, &spec, link, signals, requests).await?;
                    if let Some(end) = ended {
                        return Ok(end);
                    }
                }
                Ok(ToMember::Finish { exit_code, text }) => return Ok(finished(exit_code, text)),
                Ok(_) => {}
                Err(reason) => return Ok(End::Lost(reason)),
            }
        }
    }

    /// Waits until node 0 says that every node is there.
    ///
    /// # Errors
    /// [`End`], if this node's part ends before that.
    async fn wait_for_all(
        &self,
        link: &mut Link,
        signals: &mut Signals,
        requests: &mut Requests,
    ) -> Result<Welcome, End> {
        // After this node has joined, the others may take as long again.
        let deadline = Instant::now() + 2 * self.cluster.join_timeout;
        loop {
            let message = tokio::select! {
                message = timeout_at(deadline, receive(&mut link.incoming)) => message,
                signal = signals.next() => match ask_to_stop(requests, signal, link) {
                    Some(end) => return Err(end),
                    None => continue,
                },
            };
            match message {
                Ok(Ok(ToMember::Welcome { layout, run_dir, config, .. })) => {
                    return Ok(Welcome { layout, run_dir, config });
                }
                Ok(Ok(ToMember::Finish { exit_code, text })) => {
                    return Err(finished(exit_code, text));
                }
                Ok(Ok(_)) => {}
                Ok(Err(reason)) => return Err(End::Lost(reason)),
                Err(_) => {
                    return Err(End::Lost("it did not announce the nodes in time".to_owned()));
                }
            }
        }
    }

    /// Returns what this node's ranks are started with, and writes their configuration to `folder`.
    fn spec(
        &self,
        plan: &Plan,
        Welcome { run_dir, config, .. }: Welcome,
        folder: &Path,
        link: &Link,
    ) -> Result<Spec, LaunchError> {
        let config_path = folder.join("config.yaml");
        with_own_images(&config, &self.me.config)
            .and_then(|config| std::fs::write(&config_path, config))
            .map_err(LaunchError::system("write the configuration for this node's ranks"))?;
        let run_dir = match self.work {
            Work::Train => self.cluster.run_dir.clone().unwrap_or(run_dir),
            Work::MeasureAllReduce => folder.to_owned(),
        };
        let run_dir = RunDir::at(&run_dir);
        std::fs::create_dir_all(run_dir.logs_dir()).map_err(LaunchError::system(format!(
            "create a folder for logs in {}",
            run_dir.root().display()
        )))?;
        Ok(Spec {
            trainer: self.trainer.to_owned(),
            config: config_path,
            run_dir: Arc::new(run_dir),
            resume: String::new(),
            device: plan.device,
            threads: plan.threads_per_rank,
            json: self.json,
            work: self.work,
            env: link.interface.as_ref().map(super::network_variables).unwrap_or_default(),
        })
    }

    /// Runs this node's ranks for one attempt at the job. Returns `None` when they have ended and that is
    /// reported, else why this node's part has ended.
    async fn attempt(
        &self,
        plan: &Plan,
        spec: &Spec,
        link: &mut Link,
        signals: &mut Signals,
        requests: &mut Requests,
    ) -> Result<Option<End>, LaunchError> {
        let mpi = if plan.backend == "mpi" { MpiRole::Slots } else { MpiRole::No };
        let mut local =
            LocalRanks::start(&plan.ranks, spec.clone(), StoreLocation::Node0, &mpi, None)?;
        let mut running = plan.ranks.len();
        while running > 0 {
            tokio::select! {
                biased;
                signal = signals.next() => {
                    let name = signal.name().to_owned();
                    match requests.take(signal) {
                        Request::Stop => {
                            tracing::warn!("{name}: asking node 0 to stop; Ctrl-C (again) stops at once");
                            link.connection.send(ToLeader::Signal(name));
                        }
                        Request::StopNow => {
                            tracing::warn!("{name}: asking node 0 to stop at once");
                            link.connection.send(ToLeader::StopNow(name));
                        }
                    }
                }
                message = receive(&mut link.incoming) => match message {
                    Ok(ToMember::Stop { reason }) => local.stop(&reason),
                    Ok(ToMember::Kill) => local.kill(),
                    Ok(ToMember::Value { key, value }) => local.store().put(key, value),
                    Ok(ToMember::Daemon { command }) => local.start_daemon(&command),
                    // Dropping the ranks kills them.
                    Ok(ToMember::Finish { exit_code, text }) => return Ok(Some(finished(exit_code, text))),
                    Ok(ToMember::Start { .. } | ToMember::Welcome { .. } | ToMember::Heartbeat) => {}
                    Err(reason) => return Ok(Some(End::Lost(reason))),
                },
                local = local.next() => if let Local::RankEvent(rank_event) = local {
                    running -= usize::from(matches!(rank_event, RankEvent::Exited { .. }));
                    link.connection.send(ToLeader::RankEvent(short_enough(rank_event)));
                },
            }
        }
        let first = plan.layout.ranks_of(plan.layout.node_rank).start;
        for (index, (path, tail)) in local.end().await.into_iter().enumerate() {
            let tail = tail.iter().map(|line| short_line(line)).collect();
            link.connection.send(ToLeader::Log { rank: first + index, path, tail });
        }
        link.connection.send(ToLeader::AttemptEnded);
        Ok(None)
    }
}

/// Forwards a signal to node 0 while this launcher waits for it. Returns the end of this node's part if
/// somebody will not wait any longer.
fn ask_to_stop(requests: &mut Requests, signal: StopSignal, link: &Link) -> Option<End> {
    match requests.take(signal) {
        Request::Stop => {
            link.connection.send(ToLeader::Signal(signal.name().to_owned()));
            None
        }
        Request::StopNow => {
            let text = "stopped by a second Ctrl-C while waiting for node 0".to_owned();
            Some(End::Finished(ExitCode::Stopped, text))
        }
    }
}

async fn receive(
    incoming: &mut UnboundedReceiver<Result<ToMember, String>>,
) -> Result<ToMember, String> {
    incoming.recv().await.unwrap_or_else(|| Err("the connection is closed".to_owned()))
}

fn stopped_early(signal: &str) -> (ExitCode, String) {
    (ExitCode::Stopped, format!("stopped by {signal} before the job began"))
}

/// The end that node 0 has announced, for the reason `text`.
fn finished(exit_code: u8, text: String) -> End {
    let text = if text.is_empty() { text } else { format!("node 0: {text}") };
    End::Finished(ExitCode::from_code(exit_code).unwrap_or(ExitCode::RankFailed), text)
}

/// Returns `config`, node 0's configuration in YAML, with `data.root` as this node has it in `own`.
fn with_own_images(config: &str, own: &serde_json::Value) -> io::Result<String> {
    let mut config: Config = serde_yaml::from_str(config).map_err(io::Error::other)?;
    if let Some(root) = own["data"]["root"].as_str() {
        config.data.root = root.into();
    }
    Ok(config::to_yaml(&config))
}

/// Returns the beginning of a line, cut to [`MAX_TAIL_LINE_BYTES`] as JSON.
fn short_line(line: &str) -> String {
    let mut bytes = 0;
    let fits = |c: &char| {
        bytes += json_bytes(*c);
        bytes <= MAX_TAIL_LINE_BYTES
    };
    line.chars().take_while(fits).collect()
}

/// Returns how many bytes a character takes in a JSON string, at most.
const fn json_bytes(c: char) -> usize {
    match c {
        '"' | '\\' => 2,
        '\0'..='\x1f' => 6,
        _ => c.len_utf8(),
    }
}

/// Cuts a rank's message to [`MAX_MESSAGE`]: it fitted the rank's frame, but with what is around it here it
/// may not.
fn short_enough(rank_event: RankEvent) -> RankEvent {
    match rank_event {
        RankEvent::Said { rank, message: ToLauncher::Failed { exit_code, message, blame } } => {
            let message = message.chars().take(MAX_MESSAGE).collect();
            RankEvent::Said { rank, message: ToLauncher::Failed { exit_code, message, blame } }
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_read_the_images_of_their_own_node_and_all_else_is_node_0s() {
        let mut theirs = Config::default();
        theirs.data.root = "/node-0/data".into();
        theirs.train.seed = 7;
        let own = serde_json::json!({"data": {"root": "/scratch/data"}});
        let text = with_own_images(&config::to_yaml(&theirs), &own).unwrap();
        let ranks: Config = serde_yaml::from_str(&text).unwrap();
        theirs.data.root = "/scratch/data".into();
        assert_eq!(ranks, serde_yaml::from_str(&config::to_yaml(&theirs)).unwrap());
    }

    #[test]
    fn the_end_of_a_log_fits_a_frame_whatever_was_written() {
        for c in ['\u{1b}', '\u{1d11e}', '"', '\n', 'x'] {
            let line = String::from(c).repeat(8192);
            let tail = vec![short_line(&line); 20];
            let path = "/".to_owned() + &"p/".repeat(2000);
            let log = ToLeader::Log { rank: 1, path: path.into(), tail };
            assert!(comm::control::encode(&log).is_ok(), "{c:?}");
        }
        assert_eq!(short_line("a line"), "a line");
    }
}
