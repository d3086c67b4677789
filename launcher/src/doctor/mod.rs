//! `launcher doctor`: whether a run can work here, found out before it is started.
//!
//! Each check gives [`Finding`]s: what is fine, what is not, and what to do about it. With several nodes,
//! each node's doctor checks its node, and they join like the launchers of a job would.

mod all_reduce;
mod checks;
mod cluster;
mod gpus;

use std::fmt;
use std::io::{self, Write};

use comm::env::shares_gpus;
use job::{ExitCode, config};
use time::OffsetDateTime;

use crate::cli::Cli;
use crate::error::LaunchError;
use crate::plan::{self, Layout, Plan, Request};
use crate::topology::Topology;
use crate::{gpus as visible, spawn};

/// How bad something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// As it should be.
    Fine,
    /// A run works, but not as well as it could.
    Warning,
    /// A run cannot work.
    Broken,
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What was looked at.
    pub subject: &'static str,
    /// What was seen.
    pub seen: String,
    /// What to do; empty where all is fine.
    pub remedy: String,
}

impl Finding {
    /// As it should be.
    pub fn fine(subject: &'static str, seen: impl Into<String>) -> Self {
        Self { severity: Severity::Fine, subject, seen: seen.into(), remedy: String::new() }
    }

    /// Not as good as it could be.
    pub fn warning(
        subject: &'static str,
        seen: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        let (seen, remedy) = (seen.into(), remedy.into());
        Self { severity: Severity::Warning, subject, seen, remedy }
    }

    /// A run cannot work.
    pub fn broken(
        subject: &'static str,
        seen: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { severity: Severity::Broken, ..Self::warning(subject, seen, remedy) }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = match self.severity {
            Severity::Fine => "ok",
            Severity::Warning => "warning",
            Severity::Broken => "BROKEN",
        };
        write!(f, "{mark:<8} {:<16} {}", self.subject, self.seen)?;
        if !self.remedy.is_empty() {
            write!(f, "\n{:<25} -> {}", "", self.remedy)?;
        }
        Ok(())
    }
}

/// Looks at everything that a run of `cli`'s configuration needs, and prints what it finds.
///
/// # Errors
/// [`LaunchError`] when the configuration is wrong, or nothing can be printed.
pub async fn examine(cli: &Cli) -> Result<ExitCode, LaunchError> {
    let config = match cli.config() {
        Some(path) => config::load(path, &cli.overrides)?,
        None => config::Config::default(),
    };
    let mut findings = Findings::default();
    let launcher = std::env::current_exe().map_err(LaunchError::system("find this executable"))?;
    let trainer = spawn::find_trainer(&launcher, std::env::var_os("PATH"));
    let request = cli.request();
    let wants_gpus = !matches!(request, Request::Cpu { .. });
    let visible = if wants_gpus { visible::visible().await } else { 0 };
    let about = match &trainer {
        Ok(trainer) => findings.take(checks::trainer(trainer, wants_gpus && visible > 0).await),
        Err(error) => {
            findings.add([Finding::broken("trainer", error.to_string(), "build it")]);
            None
        }
    };
    let topology = Topology::detect();
    let cluster = match cli.cluster(|name| std::env::var(name).ok()) {
        Ok(cluster) => cluster,
        Err(error) => {
            let remedy = "see `launcher --help` and docs/several-machines.md";
            findings.add([Finding::broken("nodes", error.to_string(), remedy)]);
            None
        }
    };
    let nodes = cluster.as_ref().map_or(1, |cluster| cluster.nodes);
    let node_rank = cluster.as_ref().map_or(0, |cluster| cluster.node_rank);
    let (data, outline) = checks::data(&config);
    let planned =
        plan::devices(request, visible, shares_gpus(), &topology).and_then(|(device, ranks)| {
            let layout = Layout { node_rank, ranks_per_node: vec![ranks; nodes] };
            let plan = |outline| Plan::new(&config, outline, device, layout, &topology);
            outline.as_ref().map(plan).transpose()
        });
    match &planned {
        // Without data there is nothing to plan.
        Ok(None) => {}
        Ok(Some(plan)) => {
            findings.add(checks::cores(plan));
            if wants_gpus {
                findings.add(
                    gpus::examine(about.as_ref(), plan.layout.ranks_of(node_rank).len()).await,
                );
            }
            findings.add(checks::memory(plan));
            findings.add(checks::all_reduce(plan));
            let default =
                || job::run_dir::RunDir::default_path("run".as_ref(), OffsetDateTime::now_utc());
            let run_dir = cli.run_dir.clone().unwrap_or_else(default);
            findings.add(checks::disk(plan, &config, &run_dir));
            if plan.backend == "mpi" {
                findings.add(checks::mpirun(about.as_ref()).await);
            }
        }
        Err(error) => {
            let remedy = "see the message; `nvidia-smi` shows what the driver sees";
            findings.add([Finding::broken("devices", error.to_string(), remedy)]);
        }
    }
    findings.add(data);
    if let (Some(cluster), Ok(Some(plan))) = (&cluster, &planned) {
        findings.add(cluster::examine(cluster, plan, &config).await);
    }
    findings.print()
}

#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, findings: impl IntoIterator<Item = Finding>) {
        self.0.extend(findings);
    }

    fn take<T>(&mut self, (findings, value): (Vec<Finding>, T)) -> T {
        self.0.extend(findings);
        value
    }

    fn print(&self) -> Result<ExitCode, LaunchError> {
        let mut text: String = self.0.iter().map(|finding| format!("{finding}\n")).collect();
        let worst = self.0.iter().map(|finding| finding.severity).max();
        let (last, exit_code) = match worst {
            Some(Severity::Broken) => ("a run cannot work here as it is", ExitCode::Setup),
            Some(Severity::Warning) => ("a run works here", ExitCode::Done),
            _ => ("all is well", ExitCode::Done),
        };
        text += &format!("{last}\n");
        io::stdout()
            .write_all(text.as_bytes())
            .map(|()| exit_code)
            .map_err(LaunchError::system("print what was found"))
    }
}
