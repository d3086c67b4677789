//! From a command line to a running job and its exit code.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use comm::env::shares_gpus;
use job::config::Config;
use job::dataset::{self, Outline, Source};
use job::run_dir::RunDir;
use job::{ExitCode, config};
use time::OffsetDateTime;
use tokio::net::TcpListener;

use crate::cli::{Cli, command_to_go_on};
use crate::cluster::host::Host;
use crate::cluster::member::Member;
use crate::cluster::message::Introduction;
use crate::cluster::{self, Cluster};
use crate::console::{Console, Style};
use crate::error::LaunchError;
use crate::events::{Event, EventLog};
use crate::local::OverMpi;
use crate::mpi::{self, Mpirun};
use crate::plan::{self, Device, Layout, Plan, Request};
use crate::policy::{Limits, Outcome};
use crate::progress::clock;
use crate::spawn::Spec;
use crate::supervise::{Report, Supervisor};
use crate::topology::Topology;
use crate::verdict::{self, Evidence};
use crate::{about, data, gpus, slurm, spawn};

/// What a rank may take beyond the deadline of its collectives: for a step and for the disk.
const BEYOND_COMM_TIMEOUT: Duration = Duration::from_secs(60);

/// What is known before any rank is started and any other node heard of.
struct Launch<'a> {
    cli: &'a Cli,
    console: &'a Console,
    config: Config,
    outline: Outline,
    device: Device,
    ranks: usize,
    topology: Topology,
    run_dir: PathBuf,
    trainer: PathBuf,
}

/// Does what the command line says and returns how the launcher ends.
///
/// # Errors
/// [`LaunchError`] when the job cannot be started.
pub async fn launch(cli: &Cli, console: &Console) -> Result<ExitCode, LaunchError> {
    let config_path = cli.config().ok_or(LaunchError::NoConfig)?;
    let mut config = config::load(config_path, &cli.overrides)?;
    let cluster = cli.cluster(|name| std::env::var(name).ok())?;
    let request = cli.request();
    let visible_gpus = match request {
        Request::Cpu { .. } => 0,
        Request::AllGpus | Request::Gpus { .. } => gpus::visible().await,
    };
    let topology = Topology::detect();
    let outline = dataset::outline(&config.data)?;
    let (device, ranks) = plan::devices(request, visible_gpus, shares_gpus(), &topology)?;
    // As many on each node as here, until they say how many they have.
    let presumed = cluster.as_ref().map_or_else(
        || Layout::single(ranks),
        |it| Layout { node_rank: it.node_rank, ranks_per_node: vec![ranks; it.nodes] },
    );
    let plan = Plan::new(&config, &outline, device, presumed, &topology)?;
    let run_dir = cli
        .run_dir
        .clone()
        .unwrap_or_else(|| RunDir::default_path(config_path, OffsetDateTime::now_utc()));
    if cli.dry_run {
        return print_plan(&plan, &config, &run_dir);
    }
    plan.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    let launcher = std::env::current_exe().map_err(LaunchError::system("find this executable"))?;
    let trainer = spawn::find_trainer(&launcher, std::env::var_os("PATH"))?;
    let listener = listen(cluster.as_ref()).await?;
    let source = data::prepare(&mut config)?;
    let outline = match &source {
        Source::Synthetic { .. } => dataset::outline(&config.data)?,
        _ => outline,
    };
    let data_hash = cluster.is_some().then(|| data::hash(&source, &config)).transpose()?;
    let launch =
        Launch { cli, console, config, outline, device, ranks, topology, run_dir, trainer };
    match (cluster, listener) {
        (Some(cluster), Some(listener)) => {
            let me = launch.introduction(&cluster, data_hash)?;
            launch.lead(&cluster, me, listener).await
        }
        (Some(cluster), None) => {
            let me = launch.introduction(&cluster, data_hash)?;
            launch.follow(&cluster, me).await
        }
        (None, _) => {
            let run_dir = RunDir::open(&launch.run_dir, &launch.config, &cli.resume)?;
            let (exit_code, _) = launch.supervise(run_dir, None).await?;
            Ok(exit_code)
        }
    }
}

/// On node 0 at once, so that a port that is taken is told of before the images are read.
async fn listen(cluster: Option<&Cluster>) -> Result<Option<TcpListener>, LaunchError> {
    match cluster {
        Some(cluster) if cluster.node_rank == 0 => {
            let listener = cluster.rendezvous.listen().await;
            listener.map(Some).map_err(LaunchError::cluster(ExitCode::Setup))
        }
        _ => Ok(None),
    }
}

fn print_plan(plan: &Plan, config: &Config, run_dir: &Path) -> Result<ExitCode, LaunchError> {
    let data = data::describe(&config.data);
    let text =
        format!("{plan}\n{:<18}{data}\n{:<18}{}\n", "data", "run directory", run_dir.display());
    io::stdout()
        .write_all(text.as_bytes())
        .map(|()| ExitCode::Done)
        .map_err(LaunchError::system("print the plan"))
}

impl Launch<'_> {
    fn introduction(
        &self,
        cluster: &Cluster,
        data_hash: Option<String>,
    ) -> Result<Introduction, LaunchError> {
        let data_hash = data_hash.unwrap_or_default();
        Introduction::new(cluster, self.ranks, self.device, &self.config, data_hash)
    }

    /// Node 0's part.
    async fn lead(
        &self,
        cluster: &Cluster,
        me: Introduction,
        listener: TcpListener,
    ) -> Result<ExitCode, LaunchError> {
        let run_dir = RunDir::open(&self.run_dir, &self.config, &self.cli.resume)?;
        let token = cluster.secret.read_or_make()?;
        let rendezvous = cluster.rendezvous.clone();
        if let Ok(address) = listener.local_addr() {
            tracing::info!("{} other nodes may join at {address}", cluster.nodes - 1);
        }
        let mut host = Host::new(me, token, rendezvous, listener, cluster.join_timeout);
        let ended = match host.gather().await {
            Ok(()) => self.supervise(run_dir, Some(&mut host)).await,
            Err(error) => Err(error),
        };
        cluster.secret.remove();
        match &ended {
            Ok((exit_code, verdict)) => host.finish(*exit_code, verdict).await,
            Err(error) => host.finish(error.exit_code(), &error.to_string()).await,
        }
        ended.map(|(exit_code, _)| exit_code)
    }

    /// Any other node's part.
    async fn follow(&self, cluster: &Cluster, me: Introduction) -> Result<ExitCode, LaunchError> {
        let plan = |layout| {
            Ok(Plan::new(&self.config, &self.outline, self.device, layout, &self.topology)?)
        };
        let member = Member {
            cluster,
            me,
            trainer: &self.trainer,
            json: self.console.style() == Style::Json,
            max_restarts: self.cli.max_restarts,
            plan: &plan,
        };
        let (exit_code, verdict) = member.run().await?;
        match self.console.style() {
            _ if verdict.is_empty() => tracing::info!("done, says node 0"),
            Style::Json => tracing::error!(exit_code = exit_code as u8, "{verdict}"),
            Style::Pretty | Style::Quiet => self.console.line(&format!("\nnode 0 says: {verdict}")),
        }
        Ok(exit_code)
    }

    /// Runs the job and returns how it ended, and what is to be said of that.
    async fn supervise(
        &self,
        run_dir: RunDir,
        others: Option<&mut Host>,
    ) -> Result<(ExitCode, String), LaunchError> {
        let layout = others.as_ref().map_or_else(|| Layout::single(self.ranks), |it| it.layout());
        let hosts = others.as_ref().map_or_else(|| vec![cluster::host_name()], |it| it.hosts());
        let plan = Plan::new(&self.config, &self.outline, self.device, layout, &self.topology)?;
        let nodes = match hosts.len() {
            1 => String::new(),
            nodes => format!(" of {nodes} nodes"),
        };
        tracing::info!(
            "{} ranks on {}{nodes}, over {}, {} threads each; run directory {}",
            plan.world_size(),
            plan.device.name(),
            plan.backend,
            plan.threads_per_rank,
            run_dir.root().display()
        );
        let interface = others.as_ref().and_then(|host| host.interface().cloned());
        let network = interface.as_ref().map(|interface| interface.network.clone());
        let mpi = self.over_mpi(&plan, &hosts, network, &run_dir).await?;
        let patience = Duration::from_secs(self.config.comm.timeout_seconds) + BEYOND_COMM_TIMEOUT;
        let mut events = EventLog::open(&run_dir.events_path());
        let root = run_dir.root().to_owned();
        let supervisor = Supervisor {
            plan: &plan,
            mpi,
            spec: Spec {
                trainer: self.trainer.clone(),
                config: run_dir.config_path(),
                run_dir: Arc::new(run_dir),
                resume: String::new(),
                device: plan.device,
                threads: plan.threads_per_rank,
                json: self.console.style() == Style::Json,
                env: interface.as_ref().map(cluster::network_variables).unwrap_or_default(),
            },
            resume: &self.cli.resume,
            limits: Limits { stop: patience, silence: patience },
            ends_in: self.ends_in().await,
            max_restarts: self.cli.max_restarts,
            console: self.console,
        };
        if let Some(host) = &others {
            supervisor.welcome(host)?;
        }
        let started = Instant::now();
        let report = supervisor.run(others, &mut events).await?;
        if report.outcome == Outcome::Done {
            let took = clock(started.elapsed());
            tracing::info!("done in {took}; run directory {}", root.display());
        }
        let hosts = match plan.layout.ranks_per_node.as_slice() {
            [_] => Vec::new(),
            several => {
                several.iter().zip(&hosts).flat_map(|(n, it)| vec![it.clone(); *n]).collect()
            }
        };
        Ok(conclude(self.console, &mut events, &report, &hosts, &root))
    }

    /// When the job is ended from outside, as a time from now.
    async fn ends_in(&self) -> Option<Duration> {
        let now = SystemTime::now();
        if let Some(deadline) = self.cli.deadline {
            return Some(deadline.from(now));
        }
        let end = slurm::job_end(|name| std::env::var(name).ok()).await?;
        Some(end.duration_since(now).unwrap_or_default())
    }

    async fn over_mpi(
        &self,
        plan: &Plan,
        hosts: &[String],
        network: Option<String>,
        run_dir: &RunDir,
    ) -> Result<OverMpi, LaunchError> {
        if plan.backend != "mpi" {
            return Ok(OverMpi::No);
        }
        let setup = |text: String| LaunchError::Cluster { exit_code: ExitCode::Setup, text };
        for (node, host) in hosts.iter().enumerate() {
            if let Some(other) = hosts[..node].iter().position(|it| it == host) {
                return Err(setup(format!(
                    "nodes {other} and {node} both call themselves {host}: mpirun cannot tell them apart"
                )));
            }
        }
        let about = about::ask(&self.trainer, false).await.map_err(setup)?;
        let Some(built_with) = about.mpirun else {
            return Err(setup(format!(
                "{} was built without MPI, over which ranks on CPUs of several nodes talk: \
                 cargo build --release -p trainer --features mpi",
                self.trainer.display()
            )));
        };
        let ranks = plan.layout.ranks_per_node.iter().copied();
        Ok(OverMpi::Mpirun(Mpirun {
            program: mpi::find_mpirun(&built_with),
            nodes: hosts.iter().cloned().zip(ranks).collect(),
            network,
            log: run_dir.logs_dir().join("mpirun.log"),
        }))
    }
}

fn conclude(
    console: &Console,
    events: &mut EventLog,
    report: &Report,
    hosts: &[String],
    run_dir: &Path,
) -> (ExitCode, String) {
    let args: Vec<_> = std::env::args_os().map(|arg| arg.to_string_lossy().into_owned()).collect();
    let text = verdict::render(&Evidence {
        outcome: &report.outcome,
        ranks: report.job.ranks(),
        logs: &report.logs,
        stop_reason: report.job.stop_reason(),
        hosts,
        restarts: report.restarts,
        command: &command_to_go_on(&args, &run_dir.to_string_lossy()),
    });
    let exit_code = report.outcome.exit_code();
    let rank = match &report.outcome {
        Outcome::Failed(failure) => Some(failure.rank),
        _ => None,
    };
    match console.style() {
        _ if text.is_empty() => {}
        Style::Json => tracing::error!(rank, exit_code = exit_code as u8, "{text}"),
        Style::Pretty | Style::Quiet => console.line(&format!("\n{text}")),
    }
    let reason = report.outcome.to_string();
    events.record(&Event::Verdict { exit_code: exit_code as u8, rank, reason: &reason });
    (exit_code, text)
}
