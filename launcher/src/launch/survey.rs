//! What is known of a job from its command line, its configuration and this machine's devices alone.

use std::io::{self, Write};
use std::path::PathBuf;

use comm::env::shares_gpus;
use job::ExitCode;
use job::config::{self, Config};
use job::dataset::{self, Outline};
use job::run_dir::RunDir;
use time::OffsetDateTime;

use crate::cli::LaunchArgs;
use crate::cluster::Cluster;
use crate::error::LaunchError;
use crate::plan::{self, Device, Layout, Plan, PlanError, Request};
use crate::topology::Topology;
use crate::{data, gpus};

/// What is known before any file is written or any other node is contacted.
pub(super) struct Survey {
    pub(super) config: Config,
    pub(super) outline: Outline,
    pub(super) device: Device,
    pub(super) ranks: usize,
    pub(super) topology: Topology,
    pub(super) run_dir: PathBuf,
    pub(super) plan: Plan,
}

impl Survey {
    /// Reads the configuration and detects this node's devices. Writes nothing, and needs no data; only the
    /// files of an image folder are counted.
    pub(super) async fn new(
        cli: &LaunchArgs,
        cluster: Option<&Cluster>,
    ) -> Result<Self, LaunchError> {
        let config_path = cli.config().ok_or(LaunchError::NoConfig)?;
        let config = config::load(config_path, &cli.overrides)?;
        let request = cli.request();
        let visible_gpus = match request {
            Request::Cpu { .. } => 0,
            Request::AllGpus | Request::Gpus { .. } => gpus::visible().await,
        };
        let topology = Topology::detect();
        let outline = dataset::outline(&config.data)?;
        let (device, ranks) = plan::devices(request, visible_gpus, shares_gpus(), &topology)?;
        // Presumes as many ranks on each node as here, until the nodes say how many they have.
        let presumed = cluster.map_or_else(
            || Layout::single(ranks),
            |it| Layout { node_rank: it.node_rank, ranks_per_node: vec![ranks; it.nodes] },
        );
        let plan = Plan::new(&config, &outline, device, presumed, &topology)
            .map_err(|error| located(error, cli))?;
        let default = || RunDir::default_path(config_path, OffsetDateTime::now_utc());
        let run_dir = cli.run_dir.clone().unwrap_or_else(default);
        Ok(Self { config, outline, device, ranks, topology, run_dir, plan })
    }
}

/// Converts `error`; if a value of the configuration keeps the job from being planned, adds where it was set.
pub(super) fn located(error: PlanError, cli: &LaunchArgs) -> LaunchError {
    match (error, cli.config()) {
        (PlanError::Invalid(invalid), Some(path)) => {
            config::refused(path, &cli.overrides, invalid).into()
        }
        (other, _) => other.into(),
    }
}

/// Prints the plan, for `--dry-run`.
pub(super) fn print_plan(survey: &Survey) -> Result<ExitCode, LaunchError> {
    let Survey { plan, config, run_dir, .. } = survey;
    let data = data::Outlook::new(&config.data);
    let text =
        format!("{plan}\n{:<18}{data}\n{:<18}{}\n", "data", "run directory", run_dir.display());
    io::stdout()
        .write_all(text.as_bytes())
        .map(|()| ExitCode::Done)
        .map_err(LaunchError::system("print the plan"))
}
