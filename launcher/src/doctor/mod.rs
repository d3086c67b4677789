//! `launcher doctor`: finds out whether a run can work here, before it is started.
//!
//! Each check returns [`Finding`]s: what is fine, what is not, and what to do about it. With several nodes,
//! each doctor checks its own node; then they join each other as the launchers of a job would, and all end
//! alike.

mod all_reduce;
mod disk;
mod finding;
mod gpus;
mod machine;
mod nodes;
mod slurm;

use std::io::{self, Write};
use std::path::PathBuf;

use comm::env::shares_gpus;
use job::ExitCode;
use job::config::{self, Config, Data, Fallback};
use job::dataset::{self, Outline};
use job::run_dir::RunDir;
use serde_json::json;
use time::OffsetDateTime;

use crate::about::About;
use crate::cli::LaunchArgs;
use crate::cluster::Cluster;
use crate::console::Style;
use crate::data::{self, Outlook};
use crate::error::LaunchError;
use crate::plan::{self, Layout, Plan, Request};
use crate::topology::Topology;
use crate::{gpus as visible, spawn};
use finding::{Finding, Severity};

/// Checks everything that a run of `cli`'s configuration needs, and prints the findings.
///
/// # Errors
/// [`LaunchError`] when nothing can be printed.
pub async fn examine(cli: &LaunchArgs) -> Result<ExitCode, LaunchError> {
    let mut findings = Findings::default();
    findings.extend(slurm::examine(cli.deadline).await);
    let cluster = match cli.cluster(|name| std::env::var(name).ok()) {
        Ok(cluster) => cluster,
        // `slurm::examine` has reported it.
        Err(LaunchError::SeveralLaunchers { .. }) => None,
        Err(error) => {
            let remedy = "see `launcher --help` and docs/several-machines.md";
            findings.extend([Finding::broken("nodes", error.to_string(), remedy)]);
            None
        }
    };
    // Opened before the slow checks, so that other nodes can connect meanwhile.
    let gate = match &cluster {
        Some(cluster) => findings.take(nodes::gate(cluster).await),
        None => None,
    };
    let node = Node::examine(cli, cluster.as_ref(), &mut findings).await;
    match &cluster {
        Some(cluster) => {
            let together = nodes::examine(cluster, gate, node.as_ref(), &findings).await;
            findings.extend(together);
        }
        None => {
            if let Some(node) = node.filter(|_| !findings.are_bad()) {
                findings.extend(all_reduce::measure(&node, None).await);
            }
        }
    }
    findings.print(cli.style())
}

/// This node, where there is everything that a plan needs.
struct Node {
    config: Config,
    /// The plan, assuming that every other node has as many ranks as this one.
    plan: Plan,
    trainer: PathBuf,
    outline: Outline,
    topology: Topology,
}

impl Node {
    /// Runs all checks that need no other node. Returns `None` if something is missing, which `findings` then
    /// contain.
    async fn examine(
        cli: &LaunchArgs,
        cluster: Option<&Cluster>,
        findings: &mut Findings,
    ) -> Option<Self> {
        let config = findings.take(configuration(cli));
        let request = cli.request();
        let wants_gpus = !matches!(request, Request::Cpu { .. });
        let visible = if wants_gpus { visible::visible().await } else { 0 };
        let (trainer, about) = findings.take(trainer(wants_gpus && visible > 0).await);
        let (nodes, node_rank) = cluster.map_or((1, 0), |it| (it.nodes, it.node_rank));
        let outline = findings.take(images(&config));
        let topology = Topology::detect();
        let planned = plan::devices(request, visible, shares_gpus(), &topology);
        let planned = planned.and_then(|(device, ranks)| {
            let layout = Layout { node_rank, ranks_per_node: vec![ranks; nodes] };
            let plan = |outline| Plan::new(&config, outline, device, layout, &topology);
            outline.as_ref().map(plan).transpose()
        });
        let plan = match planned {
            Ok(plan) => plan?,
            Err(error) => {
                let remedy = "--cpu N trains without GPUs; `nvidia-smi` shows what the driver sees";
                findings.extend([Finding::broken("devices", error.to_string(), remedy)]);
                return None;
            }
        };
        findings.extend(machine::cores(&plan));
        if wants_gpus {
            findings.extend(gpus::examine(about.as_ref(), plan.ranks.len(), shares_gpus()).await);
        }
        findings.extend(machine::memory(&plan));
        let default = || RunDir::default_path("run".as_ref(), OffsetDateTime::now_utc());
        let run_dir = cli.run_dir.clone().unwrap_or_else(default);
        findings.extend(disk::examine(&plan, &config, &run_dir));
        if plan.backend == "mpi" {
            findings.extend(machine::mpirun(about.as_ref()).await);
        }
        Some(Self { config, plan, trainer: trainer?, outline: outline?, topology })
    }

    /// Returns the hash of the images; empty if they are not here yet.
    async fn data_hash(&self) -> Result<String, LaunchError> {
        let mut local =
            Data { download: false, fallback: Fallback::None, ..self.config.data.clone() };
        match data::prepare(&mut local, None).await {
            Ok(source) => data::hash(&source, &self.config).await,
            Err(_) => Ok(String::new()),
        }
    }
}

/// Loads the configuration. Returns the defaults if none is named, or if it is invalid.
fn configuration(cli: &LaunchArgs) -> (Vec<Finding>, Config) {
    let subject = "configuration";
    let Some(path) = cli.config() else {
        let seen = "none is given: the defaults are checked";
        return (vec![Finding::fine(subject, seen)], Config::default());
    };
    match config::load(path, &cli.overrides) {
        Ok(config) => (vec![Finding::fine(subject, path.display().to_string())], config),
        Err(error) => {
            let remedy = "docs/configuration.md lists every key; the checks below use the defaults";
            (vec![Finding::broken(subject, error.to_string(), remedy)], Config::default())
        }
    }
}

/// Finds the trainer and asks it about itself.
async fn trainer(with_gpus: bool) -> (Vec<Finding>, (Option<PathBuf>, Option<About>)) {
    let found = std::env::current_exe()
        .map_err(LaunchError::system("find this executable"))
        .and_then(|launcher| spawn::find_trainer(&launcher, std::env::var_os("PATH")));
    match found {
        Ok(trainer) => {
            let (findings, about) = machine::trainer(&trainer, with_gpus).await;
            (findings, (Some(trainer), about))
        }
        Err(error) => {
            let remedy = "cargo build --release -p trainer";
            (vec![Finding::broken("trainer", error.to_string(), remedy)], (None, None))
        }
    }
}

/// Checks that there are images, or that they can be obtained. Also returns their outline.
fn images(config: &Config) -> (Vec<Finding>, Option<Outline>) {
    let broken = |seen| vec![Finding::broken("data", seen, "docs/data.md says how to get images")];
    let outline = match dataset::outline(&config.data) {
        Ok(outline) => outline,
        Err(error) => return (broken(error.to_string()), None),
    };
    let findings = match Outlook::new(&config.data) {
        Outlook::Bad(error) => broken(error.to_string()),
        fine => vec![Finding::fine("data", fine.to_string())],
    };
    (findings, Some(outline))
}

/// All findings so far, in the order of the checks.
#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn extend(&mut self, findings: impl IntoIterator<Item = Finding>) {
        self.0.extend(findings);
    }

    fn take<T>(&mut self, (findings, value): (Vec<Finding>, T)) -> T {
        self.0.extend(findings);
        value
    }

    fn are_bad(&self) -> bool {
        self.broken().next().is_some()
    }

    fn broken(&self) -> impl Iterator<Item = &Finding> {
        self.0.iter().filter(|finding| finding.severity == Severity::Broken)
    }

    /// Prints the findings and a verdict: with `--quiet` without what is fine, as JSON one object per line.
    /// Returns the exit code that the verdict means.
    fn print(&self, style: Style) -> Result<ExitCode, LaunchError> {
        let worst = self.0.iter().map(|finding| finding.severity).max();
        let (last, exit_code) = match worst {
            Some(Severity::Broken) => ("a run cannot work here as it is", ExitCode::Setup),
            Some(Severity::Warning) => ("a run works here", ExitCode::Done),
            _ => ("all is well", ExitCode::Done),
        };
        let is_told =
            |finding: &&Finding| style != Style::Quiet || finding.severity != Severity::Fine;
        let told = self.0.iter().filter(is_told);
        let mut lines: Vec<String> = match style {
            Style::Json => told.map(|finding| json!(finding).to_string()).collect(),
            Style::Pretty | Style::Quiet => told.map(ToString::to_string).collect(),
        };
        lines.push(match style {
            Style::Json => json!({"verdict": last, "exit_code": exit_code as u8}).to_string(),
            Style::Pretty | Style::Quiet => last.to_owned(),
        });
        let text = lines.join("\n") + "\n";
        io::stdout()
            .write_all(text.as_bytes())
            .map(|()| exit_code)
            .map_err(LaunchError::system("print the findings"))
    }
}
