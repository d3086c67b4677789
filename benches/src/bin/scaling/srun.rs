//! Starts one process on each of several nodes, within a Slurm job.

use std::ffi::OsStr;
use std::net::TcpListener;
use std::process::Command;

use crate::error::{BenchError, Result};

/// Checks that the Slurm job has `nodes` nodes; `lookup` reads an environment variable.
///
/// # Errors
/// [`BenchError::Nodes`] if it has fewer, or this is not a Slurm job.
pub fn check(nodes: usize, lookup: impl Fn(&str) -> Option<String>) -> Result<()> {
    let job = lookup("SLURM_JOB_NUM_NODES").and_then(|text| text.parse().ok());
    match job {
        _ if nodes <= 1 => Ok(()),
        Some(available) if nodes <= available => Ok(()),
        _ => Err(BenchError::Nodes { wanted: nodes, available: job }),
    }
}

/// Returns a command that runs `program` on each of the job's first `nodes` nodes, of which this is the
/// first; for one node, `program` itself. The caller appends the arguments.
pub fn command(nodes: usize, program: impl AsRef<OsStr>) -> Command {
    if nodes == 1 {
        return Command::new(program);
    }
    let mut command = Command::new("srun");
    command
        .args([format!("--nodes={nodes}"), format!("--ntasks={nodes}")])
        .args(["--ntasks-per-node=1", "--relative=0", "--kill-on-bad-exit=1", "--export=ALL"])
        .arg(program);
    command
}

/// Returns this node's name and a port that is free now, as the rendezvous endpoint of the other nodes.
///
/// # Errors
/// [`BenchError::File`] where no port is free.
pub fn meeting_point() -> Result<String> {
    let port = TcpListener::bind(("0.0.0.0", 0)).and_then(|listener| listener.local_addr());
    let port =
        port.map_err(|source| BenchError::File { path: "cannot bind a free port".into(), source })?;
    Ok(format!("{}:{}", job::host::name(), port.port()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_nodes_than_the_job_has_are_refused() {
        let job = |nodes: &'static str| move |_: &str| Some(nodes.to_owned());
        assert!(check(3, job("3")).is_ok());
        assert!(check(1, |_| None).is_ok());
        let error = check(3, job("2")).unwrap_err().to_string();
        assert_eq!(error, "3 nodes are asked for, but this Slurm job has 2");
        let error = check(2, |_| None).unwrap_err().to_string();
        assert!(error.contains("slurm/bench.sh"), "{error}");
    }

    #[test]
    fn one_node_needs_no_srun() {
        assert_eq!(command(1, "launcher").get_program(), "launcher");
        let several = command(2, "launcher");
        let words: Vec<_> = several.get_args().map(|word| word.to_string_lossy()).collect();
        assert_eq!(several.get_program(), "srun");
        assert_eq!(words[..2], ["--nodes=2", "--ntasks=2"]);
        assert_eq!(words.last().unwrap(), "launcher");
    }
}
