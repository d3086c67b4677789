//! Removing checkpoints that are not needed any more.

use std::fs;
use std::path::Path;

use super::save::Link;
use super::{Result, STATE, State, TEMPORARY, io_error};

/// Removes all but the `keep` newest checkpoints up to the latest, the best one, and what a save that
/// was cut off has left. One that claims to be newer than the latest is damaged, or it would have
/// been resumed: it does not count, and the run will write it anew.
///
/// # Errors
/// [`super::CheckpointError::Io`].
pub fn prune(checkpoints: &Path, keep: usize) -> Result<()> {
    let target = |link: Link| fs::read_link(checkpoints.join(link.name())).unwrap_or_default();
    let (best, latest) = (target(Link::Best), target(Link::Latest));
    let age_of = |folder: &Path| {
        let state = fs::read(folder.join(STATE)).unwrap_or_default();
        serde_json::from_slice::<State>(&state).map_or((0, 0), |state| state.age())
    };
    let newest = age_of(&checkpoints.join(&latest));
    let mut complete = Vec::new();
    for entry in fs::read_dir(checkpoints).map_err(io_error("read", checkpoints))? {
        let entry = entry.map_err(io_error("read", checkpoints))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(TEMPORARY) || name.ends_with(".replaced") {
            remove(&entry.path())?;
        } else if name.starts_with("epoch-") || name.starts_with("step-") {
            let age = age_of(&entry.path());
            if age <= newest {
                complete.push((age, name));
            }
        }
    }
    complete.sort();
    let surplus = complete.len().saturating_sub(keep);
    for (_, name) in complete.into_iter().take(surplus) {
        if Path::new(&name) != best && Path::new(&name) != latest {
            remove(&checkpoints.join(name))?;
        }
    }
    Ok(())
}

fn remove(path: &Path) -> Result<()> {
    fs::remove_dir_all(path).map_err(io_error("remove", path))
}
