//! Finding, verifying and loading checkpoints.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use tch::{Kind, Tensor};

use super::manifest::Manifest;
use super::{
    CheckpointError, EMA, MANIFEST, MODEL, OPTIMIZER, Result, STATE, State, Weights, io_error,
    is_replaced, tensors,
};
use crate::ema::Ema;
use crate::flat::Flat;
use crate::optim::{Optimizer, StateBuffer};

/// A checkpoint whose files match its manifest.
#[derive(Debug)]
pub struct Found {
    /// The checkpoint's folder.
    pub path: PathBuf,
    /// The state of the run when it was saved.
    pub state: State,
    /// Newer checkpoints that were refused, each as a message with the reason.
    pub refused: Vec<String>,
}

/// Returns the newest intact checkpoint: `path` itself, or one in the folder `path` or in
/// `path/checkpoints`. Returns `None` if there are no checkpoints at all.
///
/// # Errors
/// [`CheckpointError::NoneGood`] when there are checkpoints and all are damaged; [`CheckpointError::Io`]
/// when a folder cannot be read.
pub fn find(path: &Path) -> Result<Option<Found>> {
    let candidates = candidates(path)?;
    let mut refused = Vec::new();
    for path in &candidates {
        match verify(path) {
            Ok(state) => return Ok(Some(Found { path: path.clone(), state, refused })),
            Err(error) => refused.push(error.to_string()),
        }
    }
    if candidates.is_empty() {
        return Ok(None);
    }
    Err(CheckpointError::NoneGood { path: path.to_owned(), tried: refused })
}

fn verify(path: &Path) -> Result<State> {
    Manifest::verify(path)?;
    read_state(path)
}

/// Returns the folders that may be checkpoints, the newest first. A replaced checkpoint comes after the one
/// that replaced it.
fn candidates(path: &Path) -> Result<Vec<PathBuf>> {
    if path.join(MANIFEST).exists() {
        return Ok(vec![path.to_owned()]);
    }
    let nested = path.join("checkpoints");
    let folder = if nested.is_dir() { nested } else { path.to_owned() };
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(&folder).map_err(io_error("read", &folder))? {
        let entry = entry.map_err(io_error("read", &folder))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        // Symbolic links are skipped: they point to one of the other entries.
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if is_folder && (name.starts_with("epoch-") || name.starts_with("step-")) {
            // A checkpoint without a readable state cannot be loaded. It comes last, so that it is reported.
            let path = entry.path();
            let age = read_state(&path).map_or((0, 0), |state| state.age());
            let is_in_place = !is_replaced(&path);
            found.push((age, is_in_place, name, path));
        }
    }
    found.sort();
    Ok(found.into_iter().rev().map(|(.., path)| path).collect())
}

fn read_state(path: &Path) -> Result<State> {
    let file = path.join(STATE);
    let text = fs::read(&file).map_err(io_error("read", &file))?;
    serde_json::from_slice(&text)
        .map_err(|error| CheckpointError::Damaged { path: file, reason: error.to_string() })
}

/// Returns whether the folder `checkpoint` is a checkpoint whose files match its manifest.
pub fn is_whole(checkpoint: &Path) -> bool {
    verify(checkpoint).is_ok()
}

/// Returns whether the checkpoint has averaged weights.
pub fn has_ema(checkpoint: &Path) -> bool {
    checkpoint.join(EMA).exists()
}

/// Reads weights of the checkpoint: a state dict, on the CPU.
///
/// # Errors
/// [`CheckpointError::Io`].
pub fn read_weights(checkpoint: &Path, weights: Weights) -> Result<Vec<(String, Tensor)>> {
    tensors::read(&checkpoint.join(match weights {
        Weights::Model => MODEL,
        Weights::Ema => EMA,
    }))
}

/// Fills `flat` from the checkpoint's model.
///
/// # Errors
/// [`CheckpointError::DoesNotFit`] when the checkpoint is of another network; [`CheckpointError::Io`].
pub fn load_model(checkpoint: &Path, flat: &mut Flat) -> Result<()> {
    load_weights(checkpoint, Weights::Model, flat)
}

/// Fills `flat` from the checkpoint's model or averaged weights.
///
/// # Errors
/// Those of [`load_model`].
pub fn load_weights(checkpoint: &Path, weights: Weights, flat: &mut Flat) -> Result<()> {
    flat.load_state_dict(read_weights(checkpoint, weights)?)
        .map_err(|reason| CheckpointError::DoesNotFit { path: checkpoint.to_owned(), reason })
}

/// Fills `ema` from the checkpoint's averaged weights.
///
/// # Errors
/// Those of [`load_model`].
pub fn load_ema(checkpoint: &Path, flat: &Flat, ema: &mut Ema) -> Result<()> {
    flat.load_state_dict_into(ema.storage(), read_weights(checkpoint, Weights::Ema)?)
        .map(drop)
        .map_err(|reason| CheckpointError::DoesNotFit { path: checkpoint.to_owned(), reason })
}

/// Fills the state of `optimizer`, its number of steps included, from the checkpoint.
///
/// # Errors
/// [`CheckpointError::DoesNotFit`] when the checkpoint is of another optimizer; [`CheckpointError::Io`].
pub fn load_optimizer(checkpoint: &Path, flat: &Flat, optimizer: &mut Optimizer) -> Result<()> {
    let mut tensors: HashMap<_, _> =
        tensors::read(&checkpoint.join(OPTIMIZER))?.into_iter().collect();
    let does_not_fit = |reason| CheckpointError::DoesNotFit { path: checkpoint.to_owned(), reason };
    for StateBuffer { name: kind, live, dead } in optimizer.state() {
        flat.scatter(live, dead, |name| tensors.remove(&format!("{kind}.{name}")))
            .map_err(|reason| does_not_fit(format!("the optimizer's {kind}: {reason}")))?;
    }
    let steps = tensors
        .remove("step")
        .filter(|tensor| tensor.kind() == Kind::Int64 && tensor.numel() == 1)
        .ok_or_else(|| does_not_fit("the optimizer's step count is missing".to_owned()))?;
    if let Some(name) = tensors.keys().next() {
        return Err(does_not_fit(format!("the optimizer's tensor {name} is unknown")));
    }
    optimizer.resume_at(u64::try_from(steps.int64_value(&[])).unwrap_or(0));
    Ok(())
}
