//! Checks that what Slurm was asked for fits what a launcher needs.

use std::time::{Duration, SystemTime};

use super::finding::Finding;
use crate::deadline::Deadline;
use crate::progress::clock;
use crate::slurm;

/// Remaining time of the job below which the doctor warns: the run would hardly get past its start.
const SHORT: Duration = Duration::from_secs(300);

/// Checks the tasks of the Slurm step, and when the job ends: at `deadline`, if one is given. Returns no
/// findings outside of Slurm.
pub async fn examine(deadline: Option<Deadline>) -> Vec<Finding> {
    let lookup = |name: &str| std::env::var(name).ok();
    if lookup("SLURM_JOB_ID").is_none() {
        return Vec::new();
    }
    let now = SystemTime::now();
    let ends = match deadline {
        Some(deadline) => Some(now + deadline.from(now)),
        None => slurm::job_end(lookup).await,
    };
    vec![tasks(lookup), end(ends, now)]
}

fn tasks(lookup: impl Fn(&str) -> Option<String>) -> Finding {
    let subject = "Slurm tasks";
    let one_each = "use srun --ntasks-per-node=1, or sbatch slurm/train.sh; one launcher starts all ranks \
                    of its node";
    let nodes = lookup("SLURM_JOB_NUM_NODES").and_then(|text| text.parse().ok()).unwrap_or(1);
    let has_step = lookup("SLURM_STEP_ID").is_some();
    match slurm::step(lookup) {
        Ok(Some(step)) => {
            let seen = format!("step {}: one launcher on each of {} nodes", step.id, step.nodes);
            Finding::fine(subject, seen)
        }
        Ok(None) if has_step || nodes == 1 => Finding::fine(subject, "one launcher on one node"),
        Ok(None) => {
            let seen = format!("the job has {nodes} nodes, and srun did not start this launcher");
            Finding::warning(subject, format!("{seen}: it uses this node only"), one_each)
        }
        Err(error) => Finding::broken(subject, error.to_string(), one_each),
    }
}

fn end(end: Option<SystemTime>, now: SystemTime) -> Finding {
    let subject = "Slurm time";
    match end.map(|end| end.duration_since(now).unwrap_or_default()) {
        Some(left) if left < SHORT => {
            let seen = format!("the job ends in {}", clock(left));
            Finding::warning(subject, seen, "request a longer --time; the run saves before it ends")
        }
        Some(left) => Finding::fine(subject, format!("the job ends in {}", clock(left))),
        None => {
            let seen =
                "the end of the job is unknown: neither SLURM_JOB_END_TIME nor scontrol has it";
            Finding::warning(
                subject,
                seen,
                "if the job has a limit, give --deadline, to save before it",
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::Severity;

    #[test]
    fn launchers_and_nodes_are_counted() {
        let of = |pairs: &[(&str, &str)]| {
            tasks(|name| {
                pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
            })
        };
        assert_eq!(of(&[("SLURM_JOB_NUM_NODES", "1")]).severity, Severity::Fine);
        assert_eq!(of(&[("SLURM_JOB_NUM_NODES", "2")]).severity, Severity::Warning);
        let step = [("SLURM_STEP_ID", "0"), ("SLURM_STEP_NUM_NODES", "1")];
        assert_eq!(of(&step).severity, Severity::Fine);
        let twice = of(&[step[0], step[1], ("SLURM_STEP_NUM_TASKS", "2")]);
        assert_eq!(twice.severity, Severity::Broken);
        assert!(twice.remedy.contains("--ntasks-per-node=1"), "{twice}");
    }

    #[test]
    fn an_end_that_is_near_or_unknown_is_a_warning() {
        let now = SystemTime::UNIX_EPOCH;
        assert_eq!(end(Some(now + Duration::from_secs(3600)), now).severity, Severity::Fine);
        assert_eq!(end(Some(now + Duration::from_secs(60)), now).severity, Severity::Warning);
        assert_eq!(end(None, now).severity, Severity::Warning);
    }
}
