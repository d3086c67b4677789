//! Measures an all-reduce of gradients between ranks that are started and connected as for training: over
//! shared memory, MPI or NCCL, within a node and between nodes.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use job::config;
use job::run_dir::{Resume, RunDir};
use serde::Deserialize;

use super::Node;
use super::finding::Finding;
use crate::cluster;
use crate::cluster::leader::Leader;
use crate::console::{Console, Style};
use crate::error::LaunchError;
use crate::events::EventLog;
use crate::mpi;
use crate::plan::{Layout, Plan};
use crate::policy::{Limits, Outcome};
use crate::signals::Signals;
use crate::spawn::{Spec, Work};
use crate::supervise::Supervisor;

const SUBJECT: &str = "all-reduce";

/// Throughput of the all-reduce below which the doctor warns: ranks would wait for each other most of the
/// time.
const SLOW_BYTES_PER_SECOND: f64 = 100e6;

/// Result file of `trainer --measure-all-reduce`, written by rank 0.
#[derive(Deserialize)]
struct Measured {
    bytes: usize,
    seconds: f64,
}

/// Starts all ranks, including those of `others`, and judges the all-reduce that they measure. Returns no
/// finding if there is only one rank.
pub async fn measure(node: &Node, others: Option<&mut Leader>) -> Vec<Finding> {
    let layout = others.as_ref().map_or_else(|| node.plan.layout.clone(), |leader| leader.layout());
    if layout.world_size() < 2 {
        return Vec::new();
    }
    let nodes = layout.ranks_per_node.len();
    let ranks = layout.world_size();
    vec![match run(node, layout, others).await {
        Ok(Ok((backend, measured))) => judge(ranks, nodes, backend, &measured),
        Ok(Err(failure)) => {
            let remedy = "see the rank's message; a run with these options would fail likewise";
            Finding::broken(SUBJECT, failure, remedy)
        }
        Err(error) => Finding::broken(SUBJECT, error.to_string(), "see the message"),
    }]
}

fn judge(ranks: usize, nodes: usize, backend: &str, measured: &Measured) -> Finding {
    let per_second = measured.bytes as f64 / measured.seconds;
    let place = if nodes > 1 { format!("{nodes} nodes") } else { "this machine".to_owned() };
    let seen = format!(
        "{:.0} MiB of gradients over {ranks} ranks of {place}, over {backend}, in {:.1} ms: {:.2} GB/s",
        measured.bytes as f64 / f64::from(1 << 20),
        measured.seconds * 1e3,
        per_second / 1e9
    );
    if per_second < SLOW_BYTES_PER_SECOND {
        let remedy = "use a faster network (NCCL_SOCKET_IFNAME, OMPI_MCA_btl_tcp_if_include), or \
                      communicate less often: a larger batch, or train.grad_accum_steps";
        Finding::warning(SUBJECT, seen, remedy)
    } else {
        Finding::fine(SUBJECT, seen)
    }
}

/// Returns the backend and what was measured. The inner error says how the ranks failed.
async fn run(
    node: &Node,
    layout: Layout,
    others: Option<&mut Leader>,
) -> Result<Result<(&'static str, Measured), String>, LaunchError> {
    let plan = Plan::new(&node.config, &node.outline, node.plan.device, layout, &node.topology)?;
    let folder = tempfile::tempdir().map_err(LaunchError::system("create a temporary folder"))?;
    let run_dir = RunDir::at(folder.path());
    let prepared = std::fs::create_dir_all(run_dir.logs_dir())
        .and_then(|()| std::fs::write(run_dir.config_path(), config::to_yaml(&node.config)));
    prepared.map_err(LaunchError::system("prepare the measurement of the all-reduce"))?;
    let hosts = others.as_ref().map_or_else(|| vec![job::host::name()], |leader| leader.hosts());
    let interface = others.as_ref().and_then(|leader| leader.interface().cloned());
    let network = interface.as_ref().and_then(|interface| interface.network.clone());
    let mpi = mpi::over_mpi(&plan, &hosts, network, &node.trainer, &run_dir).await?;
    let mut events = EventLog::open(&run_dir.events_path());
    let (result, config) = (run_dir.all_reduce_path(), run_dir.config_path());
    let supervisor = Supervisor {
        config: &node.config,
        plan: &plan,
        mpi,
        spec: Spec {
            trainer: node.trainer.clone(),
            config,
            run_dir: Arc::new(run_dir),
            resume: String::new(),
            device: plan.device,
            threads: plan.threads_per_rank,
            json: false,
            work: Work::MeasureAllReduce,
            env: interface.as_ref().map(cluster::network_variables).unwrap_or_default(),
        },
        resume: &Resume::Never,
        limits: Limits::new(Duration::from_secs(node.config.comm.timeout_seconds)),
        ends_in: None,
        max_restarts: 0,
        console: &Console::new(Style::Quiet),
    };
    if let Some(leader) = &others {
        supervisor.welcome(leader);
    }
    let report = supervisor.run(others, &mut events, &mut Signals::catch()?).await?;
    let Outcome::Done = report.outcome else {
        let rank = report.outcome.failed_rank().unwrap_or(0);
        let last = report.logs.get(rank).and_then(|(_, tail)| tail.last());
        let said = last.map_or_else(String::new, |line| format!(": {line}"));
        return Ok(Err(format!("{}{said}", report.outcome)));
    };
    let text = std::fs::read_to_string(result);
    let measured = text.and_then(|text| serde_json::from_str(&text).map_err(io::Error::other));
    let measured = measured.map_err(LaunchError::system("read rank 0's measurement"))?;
    Ok(Ok((plan.backend, measured)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::Severity;

    #[test]
    fn a_slow_network_is_a_warning() {
        let measured = |seconds| Measured { bytes: 45 << 20, seconds };
        let fine = judge(4, 2, "mpi", &measured(0.1));
        assert_eq!(fine.severity, Severity::Fine);
        assert!(
            fine.seen
                .contains("45 MiB of gradients over 4 ranks of 2 nodes, over mpi, in 100.0 ms")
        );
        assert_eq!(judge(4, 2, "mpi", &measured(2.0)).severity, Severity::Warning);
    }
}
