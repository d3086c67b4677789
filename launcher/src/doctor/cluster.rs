//! The nodes of a job find each other: names, ports, tokens, what must be the same, and their clocks.

use std::time::Duration;

use job::ExitCode;
use job::config::Config;

use super::Finding;
use crate::cluster::Cluster;
use crate::cluster::host::Host;
use crate::cluster::member::Member;
use crate::cluster::message::Introduction;
use crate::data;
use crate::error::LaunchError;
use crate::plan::Plan;

/// Records of different nodes are hard to put in order beyond this.
const MAX_SKEW: Duration = Duration::from_secs(1);

/// Joins the doctors of the other nodes.
pub async fn examine(cluster: &Cluster, plan: &Plan, config: &Config) -> Vec<Finding> {
    let subject = "nodes";
    match join(cluster, plan, config).await {
        Ok(findings) => findings,
        Err(error) => {
            let remedy = match error.exit_code() {
                ExitCode::Hang => "start a doctor on every node; let TCP through between them",
                ExitCode::Data => "the same files on every node",
                ExitCode::Usage => "the same command on every node but for --node-rank",
                _ => "see the message",
            };
            vec![Finding::broken(subject, error.to_string(), remedy)]
        }
    }
}

async fn join(
    cluster: &Cluster,
    plan: &Plan,
    config: &Config,
) -> Result<Vec<Finding>, LaunchError> {
    let mut config = config.clone();
    let source = data::prepare(&mut config)?;
    let hash = data::hash(&source, &config)?;
    let mut me = Introduction::new(cluster, plan.ranks.len(), plan.device, &config, hash)?;
    // A doctor is no part of a job.
    me.version += " (doctor)";
    if cluster.node_rank > 0 {
        let plan = |_| Ok(plan.clone());
        let member =
            Member { cluster, me, trainer: "".as_ref(), json: false, max_restarts: 0, plan: &plan };
        member.run().await?;
        let seen = format!("joined {}", cluster.rendezvous);
        return Ok(vec![Finding::fine("nodes", seen)]);
    }
    let setup = LaunchError::cluster(ExitCode::Setup);
    let listener = cluster.rendezvous.listen().await.map_err(setup)?;
    let token = cluster.secret.read_or_make()?;
    let mut host = Host::new(me, token, cluster.rendezvous.clone(), listener, cluster.join_timeout);
    let gathered = host.gather().await;
    cluster.secret.remove();
    gathered?;
    let interface = host.interface().map_or("loopback", |interface| interface.name.as_str());
    let seen = format!("{} joined over {interface}", host.hosts()[1..].join(", "));
    let mut findings = vec![Finding::fine("nodes", seen)];
    findings.extend(host.skews().into_iter().map(|(name, seconds)| clock(&name, seconds)));
    host.finish(ExitCode::Done, "").await;
    Ok(findings)
}

fn clock(name: &str, seconds: f64) -> Finding {
    let seen = format!("{name} is {seconds:+.1} s from here");
    if seconds.abs() > MAX_SKEW.as_secs_f64() {
        Finding::warning("clocks", seen, "run chrony or systemd-timesyncd on every node")
    } else {
        Finding::fine("clocks", seen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Severity;

    #[test]
    fn a_clock_that_is_off_is_a_warning() {
        assert_eq!(clock("node 1 (n1)", -0.4).severity, Severity::Fine);
        let finding = clock("node 1 (n1)", -30.0);
        assert_eq!(finding.severity, Severity::Warning);
        assert_eq!(finding.seen, "node 1 (n1) is -30.0 s from here");
    }
}
