//! Removing checkpoints that are no longer needed.

use std::fs;
use std::path::{Path, PathBuf};

use tracing::warn;

use super::save::Pointer;
use super::{Result, STATE, State, TEMPORARY, io_error, is_replaced};

/// Removes old checkpoints and the remains of interrupted saves from the folder `checkpoints`. Keeps the
/// `keep` newest checkpoints up to the one that `latest` points to, and the one that `best` points to.
///
/// A checkpoint that is newer than `latest` is damaged, or it would have been resumed from: it is ignored,
/// and the run will overwrite it.
///
/// A folder that cannot be removed is only logged.
pub fn prune(checkpoints: &Path, keep: usize) {
    match surplus(checkpoints, keep) {
        Ok(surplus) => surplus.iter().for_each(|path| {
            if let Err(error) = fs::remove_dir_all(path) {
                warn!("cannot remove {}, which is no longer needed: {error}", path.display());
            }
        }),
        Err(error) => warn!("old checkpoints are not removed: {error}"),
    }
}

fn surplus(checkpoints: &Path, keep: usize) -> Result<Vec<PathBuf>> {
    let target =
        |pointer: Pointer| fs::read_link(checkpoints.join(pointer.name())).unwrap_or_default();
    let (best, latest) = (target(Pointer::Best), target(Pointer::Latest));
    let age_of = |folder: &Path| {
        let state = fs::read(folder.join(STATE)).unwrap_or_default();
        serde_json::from_slice::<State>(&state).map_or((0, 0), |state| state.age())
    };
    let newest = age_of(&checkpoints.join(&latest));
    let (mut complete, mut surplus) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(checkpoints).map_err(io_error("read", checkpoints))? {
        let entry = entry.map_err(io_error("read", checkpoints))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(TEMPORARY) || is_replaced(&entry.path()) {
            surplus.push(entry.path());
        } else if name.starts_with("epoch-") || name.starts_with("step-") {
            let age = age_of(&entry.path());
            if age <= newest {
                complete.push((age, name));
            }
        }
    }
    complete.sort();
    let old = complete.len().saturating_sub(keep);
    let old = complete.into_iter().take(old).map(|(_, name)| name);
    let is_kept = |name: &String| [&best, &latest].contains(&&PathBuf::from(name));
    surplus.extend(old.filter(|name| !is_kept(name)).map(|name| checkpoints.join(name)));
    Ok(surplus)
}
