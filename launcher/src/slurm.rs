//! What Slurm tells this launcher about its job. Environment variables are read through a function; only the
//! end of the job may be asked of `scontrol`.

use std::process::Stdio;
use std::time::{Duration, SystemTime};

use tokio::process::Command;

use crate::cluster::address::Rendezvous;
use crate::error::LaunchError;

/// Timeout of `scontrol`. If the controller does not answer within it, the end of the job is unknown.
const SCONTROL_TIMEOUT: Duration = Duration::from_secs(10);

/// The nodes of a Slurm step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Number of nodes.
    pub nodes: usize,
    /// Rank of this node, from 0.
    pub node_rank: usize,
    /// Where node 0's launcher listens.
    pub rendezvous: Rendezvous,
    /// `<job>.<step>`.
    pub id: String,
}

/// Returns the step that this launcher is a task of; `None` unless that has several nodes.
///
/// # Errors
/// [`LaunchError::SeveralLaunchers`] when `srun` has started several launchers on a node: each would start
/// all ranks. [`LaunchError::Nodes`] when one of Slurm's variables is missing.
pub fn step(lookup: impl Fn(&str) -> Option<String>) -> Result<Option<Step>, LaunchError> {
    let number = |name| lookup(name).and_then(|text| text.parse::<usize>().ok());
    // Without a step id these variables describe the allocation, not how this process was started.
    let Some(step_id) = lookup("SLURM_STEP_ID") else { return Ok(None) };
    let nodes = number("SLURM_STEP_NUM_NODES").unwrap_or(1);
    let launchers = number("SLURM_STEP_NUM_TASKS").unwrap_or(nodes);
    if launchers > nodes {
        return Err(LaunchError::SeveralLaunchers { launchers, nodes });
    }
    if nodes == 1 {
        return Ok(None);
    }
    let unclear = |name: &str| {
        LaunchError::Nodes(format!("a Slurm step of several nodes has no valid {name}"))
    };
    let node_rank = number("SLURM_NODEID").ok_or_else(|| unclear("SLURM_NODEID"))?;
    let list = lookup("SLURM_STEP_NODELIST").or_else(|| lookup("SLURM_JOB_NODELIST"));
    let list = list.ok_or_else(|| unclear("SLURM_STEP_NODELIST"))?;
    let job = lookup("SLURM_JOB_ID").ok_or_else(|| unclear("SLURM_JOB_ID"))?;
    let rendezvous = Rendezvous::of_job(first_host(&list), job.parse().unwrap_or(0));
    Ok(Some(Step { nodes, node_rank, rendezvous, id: format!("{job}.{step_id}") }))
}

/// Returns the first host of a list such as `n[07-09,12],m3`.
fn first_host(list: &str) -> String {
    let inside = |c: char| c == '[';
    let Some(open) = list.find(inside).filter(|open| !list[..*open].contains(',')) else {
        return list.split(',').next().unwrap_or(list).to_owned();
    };
    let (prefix, rest) = (&list[..open], &list[open + 1..]);
    let number: String = rest.chars().take_while(char::is_ascii_digit).collect();
    let after = rest.split_once(']').map_or("", |(_, after)| after);
    // `rack[1-2]n[1-4]`: the rest has its own ranges.
    let end = after.find(',').unwrap_or(after.len());
    let suffix = match after[..end].is_empty() {
        true => String::new(),
        false => first_host(after),
    };
    format!("{prefix}{number}{suffix}")
}

/// Returns when Slurm ends the job; `None` outside of a job, or if that is unknown.
pub async fn job_end(lookup: impl Fn(&str) -> Option<String>) -> Option<SystemTime> {
    let job = lookup("SLURM_JOB_ID")?;
    if let Some(end) = lookup("SLURM_JOB_END_TIME").and_then(|text| seconds(&text)) {
        return Some(end);
    }
    let mut command = Command::new("scontrol");
    command.args(["--oneliner", "show", "job", &job]).env("SLURM_TIME_FORMAT", "%s");
    command.stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(SCONTROL_TIMEOUT, command.output()).await.ok()?.ok()?;
    end_in(&String::from_utf8_lossy(&output.stdout))
}

/// Returns the end of the job from the output of `scontrol`, which has `EndTime=1795512000`, in seconds since
/// 1970. A job without a limit has `Unknown`.
fn end_in(shown: &str) -> Option<SystemTime> {
    shown.split_whitespace().find_map(|word| word.strip_prefix("EndTime=")).and_then(seconds)
}

fn seconds(text: &str) -> Option<SystemTime> {
    let seconds = text.parse().ok().filter(|seconds| *seconds > 0)?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(&str, &str)]) -> Result<Option<Step>, LaunchError> {
        step(|name| {
            pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn one_launcher_is_fine_within_slurm_and_without() {
        let one = [("SLURM_STEP_ID", "0"), ("SLURM_STEP_NUM_NODES", "1")];
        assert_eq!(of(&one).unwrap(), None);
        assert_eq!(of(&[]).unwrap(), None);
        // A batch script is no step.
        assert_eq!(of(&[("SLURM_STEP_NUM_TASKS", "4"), ("SLURM_JOB_ID", "7")]).unwrap(), None);
    }

    #[test]
    fn several_launchers_of_one_machine_are_refused() {
        let pairs =
            [("SLURM_STEP_ID", "0"), ("SLURM_STEP_NUM_NODES", "2"), ("SLURM_STEP_NUM_TASKS", "4")];
        assert!(matches!(
            of(&pairs),
            Err(LaunchError::SeveralLaunchers { launchers: 4, nodes: 2 })
        ));
    }

    #[test]
    fn a_step_on_several_machines_says_all_that_is_needed() {
        let pairs = [
            ("SLURM_STEP_ID", "1"),
            ("SLURM_STEP_NUM_NODES", "3"),
            ("SLURM_STEP_NUM_TASKS", "3"),
            ("SLURM_NODEID", "2"),
            ("SLURM_STEP_NODELIST", "n[07-09]"),
            ("SLURM_JOB_ID", "42"),
        ];
        let step = of(&pairs).unwrap().unwrap();
        assert_eq!((step.nodes, step.node_rank, step.id.as_str()), (3, 2, "42.1"));
        assert_eq!(step.rendezvous, Rendezvous::of_job("n07".to_owned(), 42));
    }

    #[test]
    fn the_first_host_of_a_list_is_found() {
        for (list, first) in [
            ("n1", "n1"),
            ("n1,n2", "n1"),
            ("n[07-09,12],m3", "n07"),
            ("m3,n[1-2]", "m3"),
            ("gpu-[1-2]-eth", "gpu-1-eth"),
            ("rack[1-2]n[01-04],x", "rack1n01"),
        ] {
            assert_eq!(first_host(list), first, "{list}");
        }
    }

    #[tokio::test]
    async fn the_end_is_read_from_the_environment_and_from_scontrol() {
        let end = |pairs: &'static [(&str, &str)]| {
            job_end(move |name| {
                pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
            })
        };
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_512_000);
        let known = end(&[("SLURM_JOB_ID", "7"), ("SLURM_JOB_END_TIME", "1795512000")]).await;
        assert_eq!(known, Some(at));
        assert_eq!(end(&[("SLURM_JOB_END_TIME", "1795512000")]).await, None);
        assert_eq!(end_in("JobId=7 EndTime=1795512000 Deadline=N/A"), Some(at));
        assert_eq!(end_in("JobId=7 EndTime=Unknown"), None);
    }
}
