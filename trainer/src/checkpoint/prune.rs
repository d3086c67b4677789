//! Removing checkpoints that are not needed any more.

use std::fs;
use std::path::Path;

use super::save::Link;
use super::{Result, STATE, State, TEMPORARY, io_error};

/// Removes all but the `keep` newest checkpoints, the best one, and what a save that was cut off
/// has left.
///
/// # Errors
/// [`super::CheckpointError::Io`].
pub fn prune(checkpoints: &Path, keep: usize) -> Result<()> {
    let best = fs::read_link(checkpoints.join(Link::Best.name())).unwrap_or_default();
    let mut complete = Vec::new();
    for entry in fs::read_dir(checkpoints).map_err(io_error("read", checkpoints))? {
        let entry = entry.map_err(io_error("read", checkpoints))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(TEMPORARY) || name.ends_with(".replaced") {
            remove(&entry.path())?;
        } else if name.starts_with("epoch-") || name.starts_with("step-") {
            let state = fs::read(entry.path().join(STATE)).unwrap_or_default();
            let step = serde_json::from_slice::<State>(&state).map_or(0, |state| state.step);
            complete.push((step, name));
        }
    }
    complete.sort();
    let surplus = complete.len().saturating_sub(keep);
    for (_, name) in complete.into_iter().take(surplus) {
        if Path::new(&name) != best {
            remove(&checkpoints.join(name))?;
        }
    }
    Ok(())
}

fn remove(path: &Path) -> Result<()> {
    fs::remove_dir_all(path).map_err(io_error("remove", path))
}
