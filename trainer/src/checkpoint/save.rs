//! Writing a checkpoint.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use tch::Tensor;

use super::manifest::Manifest;
use super::{
    EMA, MANIFEST, MODEL, OPTIMIZER, REPLACED, Result, STATE, State, TEMPORARY, io_error,
    is_replaced, tensors,
};
use crate::ema::Ema;
use crate::flat::Flat;
use crate::optim::{Optimizer, StateBuffer};

/// Writes a checkpoint into the folder `checkpoints` and returns its path. Until the new checkpoint is
/// complete and synced to disk, no existing one is touched. The caller has called
/// [`Optimizer::apply_pending_decay`], so that the dead taps in `flat` are up to date.
///
/// # Errors
/// [`super::CheckpointError::Io`], for example when the disk is full; the temporary files are removed.
pub fn save(
    checkpoints: &Path,
    flat: &Flat,
    optimizer: &Optimizer,
    ema: Option<&Ema>,
    state: &State,
) -> Result<PathBuf> {
    let name = state.checkpoint_name();
    let temporary = checkpoints.join(format!("{TEMPORARY}{name}"));
    let complete = checkpoints.join(&name);
    let written = write_files(&temporary, flat, optimizer, ema, state)
        .and_then(|()| put_in_place(&temporary, &complete));
    if written.is_err() {
        // Errors of this clean-up are ignored: the one that is returned caused it.
        let _ = fs::remove_dir_all(&temporary);
    }
    written.map(|()| complete)
}

fn write_files(
    folder: &Path,
    flat: &Flat,
    optimizer: &Optimizer,
    ema: Option<&Ema>,
    state: &State,
) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder).map_err(io_error("remove", folder))?;
    }
    // With its parents, since the folder of checkpoints may have been deleted to free the disk.
    fs::create_dir_all(folder).map_err(io_error("write", folder))?;
    write_tensors(&folder.join(MODEL), &flat.state_dict())?;
    if let Some(ema) = ema {
        write_tensors(&folder.join(EMA), &flat.state_dict_of(ema.storage()))?;
    }

    let mut tensors = vec![("step".to_owned(), Tensor::from(optimizer.steps() as i64))];
    for StateBuffer { name: kind, live, dead } in optimizer.state() {
        let named = flat.assemble(live, dead).into_iter();
        tensors.extend(named.map(|(name, tensor)| (format!("{kind}.{name}"), tensor)));
    }
    write_tensors(&folder.join(OPTIMIZER), &tensors)?;
    write_json(&folder.join(STATE), state)?;
    write_json(&folder.join(MANIFEST), &Manifest::of(folder)?)?;
    sync(folder)
}

fn put_in_place(temporary: &Path, complete: &Path) -> Result<()> {
    // A checkpoint of the same name is from before a resume; it is kept until the new one is in place.
    let replaced = complete.with_extension(REPLACED);
    if complete.exists() {
        if replaced.exists() {
            fs::remove_dir_all(&replaced).map_err(io_error("remove", &replaced))?;
        }
        fs::rename(complete, &replaced).map_err(io_error("rename", complete))?;
    }
    fs::rename(temporary, complete).map_err(io_error("rename", temporary))?;
    sync(complete.parent().unwrap_or(complete))?;
    if replaced.exists() {
        fs::remove_dir_all(&replaced).map_err(io_error("remove", &replaced))?;
    }
    Ok(())
}

/// Renames `checkpoint` back to its original name if an interrupted save has left it with the extension
/// `replaced`, and returns its path. Removes a checkpoint of the original name, so `checkpoint` must be
/// intact and the better one.
///
/// # Errors
/// [`super::CheckpointError::Io`].
pub fn restore_replaced(checkpoint: &Path) -> Result<PathBuf> {
    if !is_replaced(checkpoint) {
        return Ok(checkpoint.to_owned());
    }
    let own = checkpoint.with_extension("");
    if own.exists() {
        fs::remove_dir_all(&own).map_err(io_error("remove", &own))?;
    }
    fs::rename(checkpoint, &own).map_err(io_error("rename", checkpoint))?;
    sync(own.parent().unwrap_or(&own))?;
    Ok(own)
}

fn write_tensors(path: &Path, named: &[(String, Tensor)]) -> Result<()> {
    tensors::write(path, named)?;
    sync(path)
}

fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<()> {
    let text = serde_json::to_vec_pretty(value).map_err(io_error("write", path))?;
    fs::write(path, text).map_err(io_error("write", path))?;
    sync(path)
}

fn sync(path: &Path) -> Result<()> {
    File::open(path).and_then(|file| file.sync_all()).map_err(io_error("write", path))
}

/// A symbolic link beside the checkpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pointer {
    /// The link to the newest checkpoint.
    Latest,
    /// The link to the checkpoint with the best test accuracy.
    Best,
}

impl Pointer {
    /// Returns the link's file name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Latest => job::run_dir::LATEST,
            Self::Best => "best",
        }
    }
}

/// Makes `link`, in the parent folder of `checkpoint`, point to it. An existing link is replaced atomically.
///
/// # Errors
/// [`super::CheckpointError::Io`].
pub fn point(pointer: Pointer, checkpoint: &Path) -> Result<()> {
    let folder = checkpoint.parent().unwrap_or(checkpoint);
    let path = folder.join(pointer.name());
    let temporary = folder.join(format!(".{}", pointer.name()));
    let target = checkpoint.file_name().unwrap_or_default();
    let replace = || {
        let _ = fs::remove_file(&temporary);
        std::os::unix::fs::symlink(target, &temporary)?;
        fs::rename(&temporary, &path)
    };
    replace().map_err(io_error("write", &path))
}
