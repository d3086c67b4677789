//! Which `mpirun` is called, and for which nodes and ranks.

use std::path::{Path, PathBuf};

use job::ExitCode;
use job::run_dir::RunDir;

use crate::about;
use crate::error::LaunchError;
use crate::local::MpiRole;
use crate::plan::Plan;

/// How `mpirun` is called.
#[derive(Debug, Clone)]
pub struct Mpirun {
    /// Path of the program.
    pub program: PathBuf,
    /// Host name and number of ranks of each node.
    pub nodes: Vec<(String, usize)>,
    /// The IPv4 network between the nodes, such as `10.0.0.0/24`, if they have one.
    pub network: Option<String>,
    /// File that its output is appended to.
    pub log: PathBuf,
}

impl Mpirun {
    /// Returns the same call for nodes with other host names, `hosts`: a lost node may come back as another
    /// machine.
    ///
    /// # Errors
    /// [`LaunchError`] when two nodes have the same name, so that `mpirun` could not tell them apart.
    pub fn on(&self, hosts: &[String]) -> Result<Self, LaunchError> {
        tell_apart(hosts)?;
        let ranks = self.nodes.iter().map(|(_, ranks)| *ranks);
        Ok(Self { nodes: hosts.iter().cloned().zip(ranks).collect(), ..self.clone() })
    }
}

fn tell_apart(hosts: &[String]) -> Result<(), LaunchError> {
    for (node, host) in hosts.iter().enumerate() {
        if let Some(other) = hosts[..node].iter().position(|it| it == host) {
            let text = format!(
                "nodes {other} and {node} have the same host name, {host}: mpirun cannot tell them \
                 apart"
            );
            return Err(LaunchError::Cluster { exit_code: ExitCode::Setup, text });
        }
    }
    Ok(())
}

/// Returns what node 0 has to provide for MPI between the ranks of `plan` on nodes with the names `hosts`.
///
/// # Errors
/// [`LaunchError`] when the trainer does not answer or was built without MPI, or when two nodes have the same
/// name.
pub async fn over_mpi(
    plan: &Plan,
    hosts: &[String],
    network: Option<String>,
    trainer: &Path,
    run_dir: &RunDir,
) -> Result<MpiRole, LaunchError> {
    if plan.backend != "mpi" {
        return Ok(MpiRole::No);
    }
    let setup = |text: String| LaunchError::Cluster { exit_code: ExitCode::Setup, text };
    tell_apart(hosts)?;
    let about = about::ask(trainer, false).await.map_err(setup)?;
    let Some(built_with) = about.mpirun else {
        return Err(setup(format!(
            "{} was built without MPI, which CPU ranks on several nodes need; rebuild it: \
             cargo build --release -p trainer --features mpi",
            trainer.display()
        )));
    };
    let ranks = plan.layout.ranks_per_node.iter().copied();
    Ok(MpiRole::Mpirun(Mpirun {
        program: find_mpirun(&built_with),
        nodes: hosts.iter().cloned().zip(ranks).collect(),
        network,
        log: run_dir.logs_dir().join("mpirun.log"),
    }))
}

/// Returns the `mpirun` to use: `LOCKSTEP_MPIRUN`, else the one beside the MPI library that the trainer was
/// built with (`built_with`), else the first on `PATH`.
pub fn find_mpirun(built_with: &Path) -> PathBuf {
    std::env::var_os("LOCKSTEP_MPIRUN").map_or_else(
        || if built_with.exists() { built_with.to_owned() } else { "mpirun".into() },
        PathBuf::from,
    )
}
