//! From a command line to a running job and its exit code.

mod conclude;
mod survey;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use job::dataset::{self, Source};
use job::run_dir::RunDir;
use job::{ExitCode, counted};

use self::conclude::{conclude, has_checkpoint, record_error};
use self::survey::{Survey, located, print_plan};
use crate::background::in_background;
use crate::cli::LaunchArgs;
use crate::cluster::gate::Gate;
use crate::cluster::gather::turn_away;
use crate::cluster::leader::Leader;
use crate::cluster::member::Member;
use crate::cluster::message::Introduction;
use crate::cluster::reach::decline;
use crate::cluster::{self, Cluster};
use crate::console::{Console, Style};
use crate::error::LaunchError;
use crate::events::EventLog;
use crate::plan::{Layout, Plan};
use crate::policy::{Limits, Outcome};
use crate::progress::clock;
use crate::signals::Signals;
use crate::spawn::{Spec, Work};
use crate::supervise::Supervisor;
use crate::{data, mpi, slurm, spawn};

/// What a job is started with on this node.
struct Launch<'a> {
    cli: &'a LaunchArgs,
    console: &'a Console,
    survey: Survey,
    trainer: PathBuf,
}

/// Runs the job that the command line describes, or prints its plan, and returns the launcher's exit code.
///
/// # Errors
/// [`LaunchError`] when the job cannot be started.
pub async fn launch(cli: &LaunchArgs, console: &Console) -> Result<ExitCode, LaunchError> {
    let cluster = cli.cluster(|name| std::env::var(name).ok())?;
    if cli.dry_run {
        return print_plan(&Survey::new(cli, cluster.as_ref()).await?);
    }
    let mut signals = Signals::catch()?;
    match &cluster {
        None => {
            let preparing = async {
                let (launch, _) = Launch::prepare(cli, console, None).await?;
                let run_dir = launch.open_run_dir().await?;
                Ok((launch, run_dir))
            };
            let (launch, run_dir) = signals.unless_stopped(preparing).await?;
            let mut events = EventLog::open(&run_dir.events_path());
            let ended = launch.supervise(run_dir, None, &mut events, &mut signals).await;
            record_error(&ended, &mut events);
            ended.map(|(exit_code, _)| exit_code)
        }
        Some(cluster) if cluster.node_rank == 0 => lead(cli, console, cluster, signals).await,
        Some(cluster) => follow(cli, console, cluster, signals).await,
    }
}

/// Runs a job of several nodes as node 0.
async fn lead(
    cli: &LaunchArgs,
    console: &Console,
    cluster: &Cluster,
    mut signals: Signals,
) -> Result<ExitCode, LaunchError> {
    // First, so that a port that is taken is reported before the images are read.
    let gate = cluster.open_gate().await?;
    let prepared = async {
        let (launch, source) = Launch::prepare(cli, console, Some(cluster)).await?;
        let me = launch.introduction(cluster, &source).await?;
        let run_dir = launch.open_run_dir().await?;
        Ok((launch, me, run_dir))
    };
    match signals.unless_stopped(prepared).await {
        Ok((launch, me, run_dir)) => launch.lead(cluster, me, gate, run_dir, &mut signals).await,
        Err(error) => {
            tracing::error!("{error}; telling the other nodes (Ctrl-C ends at once)");
            tokio::select! {
                () = turn_away(cluster, gate, &error) => {}
                _ = signals.next() => {}
            }
            Err(error)
        }
    }
}

/// Takes part in a job of several nodes as another node than 0.
async fn follow(
    cli: &LaunchArgs,
    console: &Console,
    cluster: &Cluster,
    mut signals: Signals,
) -> Result<ExitCode, LaunchError> {
    let prepared = async {
        let (launch, source) = Launch::prepare(cli, console, Some(cluster)).await?;
        let me = launch.introduction(cluster, &source).await?;
        Ok((launch, me))
    };
    match signals.unless_stopped(prepared).await {
        Ok((launch, me)) => launch.follow(cluster, me, &mut signals).await,
        Err(error) => {
            tracing::error!("{error}; telling node 0 (Ctrl-C ends at once)");
            tokio::select! {
                () = decline(cluster, &error) => {}
                _ = signals.next() => {}
            }
            Err(error)
        }
    }
}

impl<'a> Launch<'a> {
    /// Plans the job, finds the trainer and makes sure that the images are available.
    async fn prepare(
        cli: &'a LaunchArgs,
        console: &'a Console,
        cluster: Option<&Cluster>,
    ) -> Result<(Self, Source), LaunchError> {
        let mut survey = Survey::new(cli, cluster).await?;
        survey.plan.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
        let launcher =
            std::env::current_exe().map_err(LaunchError::system("find this executable"))?;
        let trainer = spawn::find_trainer(&launcher, std::env::var_os("PATH"))?;
        let before = data::before(&survey.run_dir).await?;
        let source = data::prepare(&mut survey.config.data, before.as_ref()).await?;
        if let Source::Synthetic { .. } = &source {
            survey.outline = dataset::outline(&survey.config.data)?;
        }
        Ok((Self { cli, console, survey, trainer }, source))
    }

    /// Plans the ranks of this node, once it is known how many each node has.
    fn plan_for(&self, layout: Layout) -> Result<Plan, LaunchError> {
        let Survey { config, outline, device, topology, .. } = &self.survey;
        let plan = Plan::new(config, outline, *device, layout, topology);
        plan.map_err(|error| located(error, self.cli))
    }

    async fn open_run_dir(&self) -> Result<RunDir, LaunchError> {
        let (path, config) = (self.survey.run_dir.clone(), self.survey.config.clone());
        let resume = self.cli.resume.clone();
        Ok(in_background(move || RunDir::open(&path, &config, &resume)).await??)
    }

    /// Returns what this launcher tells others about itself, for which all images are read.
    async fn introduction(
        &self,
        cluster: &Cluster,
        source: &Source,
    ) -> Result<Introduction, LaunchError> {
        let data_hash = data::hash(source, &self.survey.config).await?;
        Introduction::new(
            cluster,
            self.survey.ranks,
            self.survey.device,
            &self.survey.config,
            data_hash,
        )
    }

    async fn lead(
        &self,
        cluster: &Cluster,
        me: Introduction,
        gate: Gate,
        run_dir: RunDir,
        signals: &mut Signals,
    ) -> Result<ExitCode, LaunchError> {
        let others = counted(cluster.nodes - 1, "other node");
        tracing::info!("waiting for {others} to join at {}", gate.address());
        let mut leader = Leader::new(me, gate, cluster.join_timeout);
        let mut events = EventLog::open(&run_dir.events_path());
        let ended = match signals.unless_stopped(leader.gather()).await {
            Ok(()) => self.supervise(run_dir, Some(&mut leader), &mut events, signals).await,
            Err(error) => Err(error),
        };
        record_error(&ended, &mut events);
        match &ended {
            Ok((exit_code, verdict)) => leader.finish(*exit_code, verdict).await,
            Err(error) => leader.finish(error.exit_code(), &error.to_string()).await,
        }
        ended.map(|(exit_code, _)| exit_code)
    }

    async fn follow(
        &self,
        cluster: &Cluster,
        me: Introduction,
        signals: &mut Signals,
    ) -> Result<ExitCode, LaunchError> {
        let plan = |layout| self.plan_for(layout);
        let member = Member {
            cluster,
            me,
            trainer: &self.trainer,
            json: self.console.style() == Style::Json,
            work: Work::Train,
            max_restarts: self.cli.max_restarts,
            plan: &plan,
        };
        let (exit_code, verdict) = member.run(signals).await?;
        match self.console.style() {
            _ if verdict.is_empty() => tracing::info!("done, as node 0 reports"),
            Style::Json => tracing::error!(exit_code = exit_code as u8, "{verdict}"),
            Style::Pretty | Style::Quiet => self.console.line(&format!("\n{verdict}")),
        }
        Ok(exit_code)
    }

    /// Runs the job on this node and `others`. Returns the exit code and the verdict.
    async fn supervise(
        &self,
        run_dir: RunDir,
        others: Option<&mut Leader>,
        events: &mut EventLog,
        signals: &mut Signals,
    ) -> Result<(ExitCode, String), LaunchError> {
        let layout =
            others.as_ref().map_or_else(|| Layout::single(self.survey.ranks), |it| it.layout());
        let hosts = others.as_ref().map_or_else(|| vec![job::host::name()], |it| it.hosts());
        let plan = self.plan_for(layout)?;
        announce(&plan, hosts.len(), &run_dir);
        let interface = others.as_ref().and_then(|leader| leader.interface().cloned());
        let network = interface.as_ref().and_then(|interface| interface.network.clone());
        let mpi = mpi::over_mpi(&plan, &hosts, network, &self.trainer, &run_dir).await?;
        let timeout = Duration::from_secs(self.survey.config.comm.timeout_seconds);
        let root = run_dir.root().to_owned();
        let env = interface.as_ref().map(cluster::network_variables).unwrap_or_default();
        let supervisor = Supervisor {
            config: &self.survey.config,
            plan: &plan,
            mpi,
            spec: self.spec(&plan, run_dir, env),
            resume: &self.cli.resume,
            limits: Limits::new(timeout),
            ends_in: self.ends_in().await,
            max_restarts: self.cli.max_restarts,
            console: self.console,
        };
        if let Some(leader) = &others {
            supervisor.welcome(leader);
        }
        let started = Instant::now();
        let report = supervisor.run(others, events, signals).await?;
        if report.outcome == Outcome::Done {
            let took = clock(started.elapsed());
            tracing::info!("done in {took}; run directory {}", root.display());
        }
        let ranks_per_node = plan.layout.ranks_per_node.iter();
        let hosts = ranks_per_node.zip(&report.hosts);
        let hosts: Vec<_> = hosts.flat_map(|(n, it)| vec![it.clone(); *n]).collect();
        let has_checkpoint = has_checkpoint(&root).await;
        Ok(conclude(self.console, events, &report, &hosts, &root, has_checkpoint))
    }

    /// Returns what the ranks of this node are started with; `env` holds additional environment variables.
    fn spec(&self, plan: &Plan, run_dir: RunDir, env: Vec<(&'static str, String)>) -> Spec {
        Spec {
            trainer: self.trainer.clone(),
            config: run_dir.config_path(),
            run_dir: Arc::new(run_dir),
            resume: String::new(),
            device: plan.device,
            threads: plan.threads_per_rank,
            json: self.console.style() == Style::Json,
            work: Work::Train,
            env,
        }
    }

    /// Returns the time from now until the job is ended from outside, as `--deadline` or Slurm says.
    async fn ends_in(&self) -> Option<Duration> {
        let now = SystemTime::now();
        if let Some(deadline) = self.cli.deadline {
            return Some(deadline.from(now));
        }
        let end = slurm::job_end(|name| std::env::var(name).ok()).await?;
        Some(end.duration_since(now).unwrap_or_default())
    }
}

fn announce(plan: &Plan, nodes: usize, run_dir: &RunDir) {
    let of_nodes = if nodes == 1 { String::new() } else { format!(" of {nodes} nodes") };
    tracing::info!(
        "{} on {}{of_nodes}, over {}, {} each; run directory {}",
        counted(plan.world_size(), "rank"),
        plan.device.name(),
        plan.backend,
        counted(plan.threads_per_rank, "thread"),
        run_dir.root().display()
    );
}
