//! Checks that the nodes of a job find each other and fit together: names, ports, tokens, settings that must
//! agree, clocks, and how fast they exchange gradients.

use std::time::Duration;

use job::ExitCode;

use super::finding::{Finding, Severity};
use super::{Findings, Node, all_reduce};
use crate::cluster::Cluster;
use crate::cluster::gate::Gate;
use crate::cluster::gather::turn_away;
use crate::cluster::leader::Leader;
use crate::cluster::member::Member;
use crate::cluster::message::Introduction;
use crate::cluster::reach::decline;
use crate::error::LaunchError;
use crate::plan::Plan;
use crate::signals::Signals;
use crate::spawn::Work;

const SUBJECT: &str = "nodes";

/// Clock difference beyond which the doctor warns: records of different nodes are hard to put in order.
const MAX_SKEW: Duration = Duration::from_secs(1);

/// On node 0, opens the port at which the other nodes join.
pub async fn gate(cluster: &Cluster) -> (Vec<Finding>, Option<Gate>) {
    if cluster.node_rank > 0 {
        return (Vec::new(), None);
    }
    let subject = "port";
    match cluster.open_gate().await {
        Ok(gate) => {
            let seen = format!("node 0 listens at {}", gate.address());
            (vec![Finding::fine(subject, seen)], Some(gate))
        }
        Err(error) => {
            let remedy = "set --rendezvous to a name of node 0 and a port that is free there; \
                          `ss -tlnp` shows which are taken";
            (vec![Finding::broken(subject, error.to_string(), remedy)], None)
        }
    }
}

/// Joins the doctors of the other nodes, or tells them what is broken on this one. `so_far` are the findings
/// about this node.
pub async fn examine(
    cluster: &Cluster,
    gate: Option<Gate>,
    node: Option<&Node>,
    so_far: &Findings,
) -> Vec<Finding> {
    let joined = match (node, gate) {
        (Some(node), Some(gate)) if !so_far.are_bad() => lead(cluster, gate, node).await,
        (Some(node), None) if !so_far.are_bad() => follow(cluster, node).await,
        (_, gate) => {
            tell(cluster, gate, so_far).await;
            let seen = "not checked together with the other nodes";
            let remedy = "fix what is broken here, then start the doctor on every node again";
            return vec![Finding::warning(SUBJECT, seen, remedy)];
        }
    };
    joined.unwrap_or_else(|error| {
        let remedy = match error.exit_code() {
            ExitCode::Hang => "start a doctor on every node, and allow TCP between them",
            ExitCode::Data => "put the same files on every node",
            ExitCode::Usage => "use the same command on every node, except for --node-rank",
            _ => "see the output of the doctor on the node that is named",
        };
        vec![Finding::broken(SUBJECT, error.to_string(), remedy)]
    })
}

/// Ends the doctors of the other nodes, with what is broken on this node as the reason.
async fn tell(cluster: &Cluster, gate: Option<Gate>, so_far: &Findings) {
    let broken: Vec<_> = so_far.broken().map(|it| format!("{}: {}", it.subject, it.seen)).collect();
    let error = LaunchError::Cluster { exit_code: ExitCode::Setup, text: broken.join("; ") };
    match gate {
        Some(gate) => turn_away(cluster, gate, &error).await,
        None if cluster.node_rank > 0 => decline(cluster, &error).await,
        None => {}
    }
}

async fn introduction(cluster: &Cluster, node: &Node) -> Result<Introduction, LaunchError> {
    let (plan, config) = (&node.plan, &node.config);
    let mut me =
        Introduction::new(cluster, plan.ranks.len(), plan.device, config, node.data_hash().await?)?;
    // Nodes of different versions refuse each other, so a doctor cannot join a job.
    me.version += " (doctor)";
    Ok(me)
}

/// Node 0's part: gathers the other nodes, then checks clocks and measures the all-reduce.
async fn lead(cluster: &Cluster, gate: Gate, node: &Node) -> Result<Vec<Finding>, LaunchError> {
    let me = match introduction(cluster, node).await {
        Ok(me) => me,
        Err(error) => {
            turn_away(cluster, gate, &error).await;
            return Err(error);
        }
    };
    let mut leader = Leader::new(me, gate, cluster.join_timeout);
    leader.gather().await?;
    let interface = leader.interface().map_or("loopback", |interface| interface.name.as_str());
    let seen = format!("{} joined over {interface}", leader.hosts()[1..].join(", "));
    let mut findings = vec![Finding::fine(SUBJECT, seen)];
    findings.extend(leader.skews().into_iter().map(|(name, seconds)| clock(&name, seconds)));
    findings.extend(all_reduce::measure(node, Some(&mut leader)).await);
    let broken = findings.iter().find(|finding| finding.severity == Severity::Broken);
    match broken {
        Some(finding) => leader.finish(ExitCode::Setup, &finding.seen).await,
        None => leader.finish(ExitCode::Done, "").await,
    }
    Ok(findings)
}

/// The part of any other node: joins node 0 and takes part in the all-reduce.
async fn follow(cluster: &Cluster, node: &Node) -> Result<Vec<Finding>, LaunchError> {
    let me = match introduction(cluster, node).await {
        Ok(me) => me,
        Err(error) => {
            decline(cluster, &error).await;
            return Err(error);
        }
    };
    let plan = |layout| {
        let device = node.plan.device;
        Ok(Plan::new(&node.config, &node.outline, device, layout, &node.topology)?)
    };
    let member = Member {
        cluster,
        me,
        trainer: &node.trainer,
        json: false,
        work: Work::MeasureAllReduce,
        max_restarts: 0,
        plan: &plan,
    };
    match member.run(&mut Signals::catch()?).await? {
        (ExitCode::Done, _) => {
            let seen = format!("joined {}, whose doctor reports the rest", cluster.rendezvous);
            Ok(vec![Finding::fine(SUBJECT, seen)])
        }
        (exit_code, text) => Err(LaunchError::Cluster { exit_code, text }),
    }
}

fn clock(name: &str, seconds: f64) -> Finding {
    let seen = format!("the clock of {name} differs by {seconds:+.1} s");
    if seconds.abs() > MAX_SKEW.as_secs_f64() {
        Finding::warning("clocks", seen, "run chrony or systemd-timesyncd on every node")
    } else {
        Finding::fine("clocks", seen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_off_is_a_warning() {
        assert_eq!(clock("node 1 (n1)", -0.4).severity, Severity::Fine);
        let finding = clock("node 1 (n1)", -30.0);
        assert_eq!(finding.severity, Severity::Warning);
        assert_eq!(finding.seen, "the clock of node 1 (n1) differs by -30.0 s");
    }
}
