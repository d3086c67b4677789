//! What Slurm says of this launcher. Pure: reads variables through a function.

use crate::error::LaunchError;

/// Refuses to be one of several launchers of a Slurm step: each would start all ranks.
///
/// # Errors
/// [`LaunchError::SeveralNodes`] or [`LaunchError::SeveralLaunchers`].
pub fn check_step(lookup: impl Fn(&str) -> Option<String>) -> Result<(), LaunchError> {
    let number = |name| lookup(name).and_then(|text| text.parse::<usize>().ok()).unwrap_or(1);
    // Without a step id these variables describe the allocation, not how this process was started.
    if lookup("SLURM_STEP_ID").is_none() {
        return Ok(());
    }
    match (number("SLURM_STEP_NUM_NODES"), number("SLURM_STEP_NUM_TASKS")) {
        (1, 1) => Ok(()),
        (1, launchers) => Err(LaunchError::SeveralLaunchers(launchers)),
        (nodes, _) => Err(LaunchError::SeveralNodes(format!("a Slurm step on {nodes} nodes"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(nodes: &str, tasks: &str) -> Result<(), LaunchError> {
        check_step(|name| match name {
            "SLURM_STEP_ID" => Some("0".to_owned()),
            "SLURM_STEP_NUM_NODES" => Some(nodes.to_owned()),
            "SLURM_STEP_NUM_TASKS" => Some(tasks.to_owned()),
            _ => None,
        })
    }

    #[test]
    fn one_launcher_is_fine_within_slurm_and_without() {
        assert!(step("1", "1").is_ok());
        assert!(check_step(|_| None).is_ok());
        let allocation = |name: &str| (name == "SLURM_STEP_NUM_TASKS").then(|| "4".to_owned());
        assert!(check_step(allocation).is_ok());
    }

    #[test]
    fn several_launchers_of_one_step_are_refused() {
        assert!(matches!(step("1", "4"), Err(LaunchError::SeveralLaunchers(4))));
        assert!(matches!(step("2", "2"), Err(LaunchError::SeveralNodes(_))));
    }
}
