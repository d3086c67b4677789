//! From a command line to a running job and its exit code.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use job::config::{Config, Data, Dataset, Fallback};
use job::dataset::{self, CIFAR10_DIR, DataError, Problem, Source};
use job::run_dir::RunDir;
use job::{ExitCode, config};
use time::OffsetDateTime;

use crate::cli::{Cli, command_to_go_on};
use crate::console::{Console, Style};
use crate::error::LaunchError;
use crate::events::{Event, EventLog};
use crate::plan::{Plan, Request};
use crate::policy::{Limits, Outcome};
use crate::progress::clock;
use crate::supervise::{Report, Supervisor};
use crate::topology::Topology;
use crate::verdict::{self, Evidence};
use crate::{gpus, slurm, spawn};

/// What a rank may take beyond the deadline of its collectives: for a step and for the disk.
const BEYOND_COMM_TIMEOUT: Duration = Duration::from_secs(60);

/// Does what the command line says and returns how the launcher ends.
///
/// # Errors
/// [`LaunchError`] when the job cannot be started.
pub async fn launch(cli: &Cli, console: &Console) -> Result<ExitCode, LaunchError> {
    let mut config = config::load(&cli.config, &cli.overrides)?;
    cli.check_nodes()?;
    slurm::check_step(|name| std::env::var(name).ok())?;
    let request = cli.request();
    let visible_gpus = match request {
        Request::Cpu { .. } => 0,
        Request::AllGpus | Request::Gpus { .. } => gpus::visible().await,
    };
    let topology = Topology::detect();
    let outline = dataset::outline(&config.data)?;
    let mut plan = Plan::new(&config, &outline, request, visible_gpus, &topology)?;
    let run_dir = cli
        .run_dir
        .clone()
        .unwrap_or_else(|| RunDir::default_path(&cli.config, OffsetDateTime::now_utc()));
    if cli.dry_run {
        let data = describe_data(&config.data);
        let text =
            format!("{plan}\n{:<18}{data}\n{:<18}{}\n", "data", "run directory", run_dir.display());
        return io::stdout()
            .write_all(text.as_bytes())
            .map(|()| ExitCode::Done)
            .map_err(LaunchError::system("print the plan"));
    }
    plan.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    let launcher = std::env::current_exe().map_err(LaunchError::system("find this executable"))?;
    let trainer = spawn::find_trainer(&launcher, std::env::var_os("PATH"))?;
    if let Source::Synthetic { because: Some(reason) } = prepare_data(&config.data)? {
        tracing::warn!("training on SYNTHETIC images: {reason}");
        // Decided once, for all ranks, and for those who go on with this run.
        config.data.dataset = Dataset::Synthetic;
        config.data.image_size = None;
        let outline = dataset::outline(&config.data)?;
        plan = Plan::new(&config, &outline, request, visible_gpus, &topology)?;
    }
    let run_dir = RunDir::open(&run_dir, &config, &cli.resume)?;
    supervise(cli, console, &config, &plan, &trainer, &run_dir).await
}

async fn supervise(
    cli: &Cli,
    console: &Console,
    config: &Config,
    plan: &Plan,
    trainer: &Path,
    run_dir: &RunDir,
) -> Result<ExitCode, LaunchError> {
    tracing::info!(
        "{} ranks on {}, {} threads each; run directory {}",
        plan.world_size(),
        plan.device.name(),
        plan.threads_per_rank,
        run_dir.root().display()
    );
    let patience = Duration::from_secs(config.comm.timeout_seconds) + BEYOND_COMM_TIMEOUT;
    let supervisor = Supervisor {
        plan,
        trainer,
        run_dir,
        resume: &cli.resume,
        limits: Limits { stop: patience, silence: patience },
        max_restarts: cli.max_restarts,
        console,
    };
    let mut events = EventLog::open(&run_dir.events_path());
    let started = Instant::now();
    let report = supervisor.run(&mut events).await?;
    if report.outcome == Outcome::Done {
        let took = clock(started.elapsed());
        tracing::info!("done in {took}; run directory {}", run_dir.root().display());
    }
    Ok(conclude(console, &mut events, &report, run_dir.root()))
}

fn conclude(console: &Console, events: &mut EventLog, report: &Report, run_dir: &Path) -> ExitCode {
    let args: Vec<_> = std::env::args_os().map(|arg| arg.to_string_lossy().into_owned()).collect();
    let text = verdict::render(&Evidence {
        outcome: &report.outcome,
        ranks: report.job.ranks(),
        logs: &report.logs,
        stop_reason: report.job.stop_reason(),
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
    exit_code
}

fn prepare_data(data: &Data) -> Result<Source, DataError> {
    dataset::prepare(data, cifar10_dir().as_deref())
}

fn cifar10_dir() -> Option<PathBuf> {
    std::env::var_os(CIFAR10_DIR).map(PathBuf::from)
}

/// Where the images would come from, without getting any.
fn describe_data(data: &Data) -> String {
    if data.dataset == Dataset::ImageFolder {
        return format!("image files in {}", data.root.display());
    }
    let local = Data { download: false, fallback: Fallback::None, ..data.clone() };
    let problem = match prepare_data(&local) {
        Ok(source) => return source.to_string(),
        Err(DataError { problem: Problem::Missing { title, root }, .. }) if data.download => {
            let otherwise = match data.fallback {
                Fallback::None => "",
                Fallback::Synthetic => "; synthetic images if that fails",
            };
            return format!("{title}, to be downloaded into {}{otherwise}", root.display());
        }
        Err(DataError { problem: Problem::Missing { title, .. }, .. })
            if data.fallback == Fallback::Synthetic =>
        {
            return format!("synthetic images: {title} is not there and data.download is false");
        }
        Err(problem) => problem,
    };
    format!("missing or bad: {problem}")
}
