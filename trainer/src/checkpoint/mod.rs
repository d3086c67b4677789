//! Checkpoints, which are written atomically.
//!
//! A checkpoint is a folder with `model.safetensors`, `optimizer.safetensors`, `state.json`, with averaged
//! weights also `ema.safetensors`, and `manifest.json`, which holds the hash of each of the others and is
//! written last. [`save()`] writes into a temporary folder that is renamed when it is complete and synced
//! to disk; [`find`] returns only checkpoints whose files match their manifest. No file format here can
//! contain code that loading would execute.

mod load;
mod manifest;
mod prune;
mod save;
mod state;
pub mod tensors;

use std::path::{Path, PathBuf};

pub use load::{
    Found, find, has_ema, is_whole, load_ema, load_model, load_optimizer, load_weights,
    read_weights,
};
pub use prune::prune;
pub use save::{Pointer, point, restore_replaced, save};
pub use state::State;

const MODEL: &str = "model.safetensors";
const EMA: &str = "ema.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
const STATE: &str = "state.json";
const MANIFEST: &str = "manifest.json";
/// Prefix of the names of temporary folders, whose checkpoint is not complete yet.
const TEMPORARY: &str = ".saving-";
/// Extension of the folder of a checkpoint that is being replaced by a new one of the same name.
const REPLACED: &str = "replaced";

/// Returns whether `path` has the name of a replaced checkpoint.
fn is_replaced(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == REPLACED)
}

/// Selects which weights of a checkpoint to load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weights {
    /// The weights that are trained.
    Model,
    /// The moving average of the weights, see [`crate::ema`].
    Ema,
}

/// Why a checkpoint could not be written, found or loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// A file operation failed.
    #[error("cannot {action} {}: {reason}", path.display())]
    Io {
        /// The operation: `write`, `read`, `rename` or `remove`.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The error of the operating system, or of the file format.
        reason: String,
    },
    /// A tensor that cannot be stored in a file, which is a bug.
    #[error("cannot store a tensor in {}: {reason}", path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// Why the tensor cannot be stored.
        reason: String,
    },
    /// The files of a checkpoint differ from what was written.
    #[error("{} is damaged: {reason}", path.display())]
    Damaged {
        /// The checkpoint.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// There is no checkpoint that can be loaded.
    #[error("{} holds no checkpoint that can be read{}", path.display(), because(tried))]
    NoneGood {
        /// The folder that was searched.
        path: PathBuf,
        /// For each checkpoint that was found, why it was refused.
        tried: Vec<String>,
    },
    /// A run that has ended has no checkpoint any more.
    #[error(
        "{} holds no checkpoint, but the run has ended after {steps} steps: training it again would replace \
         its records; give another --run-dir, or remove this one", path.display()
    )]
    Removed {
        /// The folder of the run's checkpoints.
        path: PathBuf,
        /// Number of steps that the run took.
        steps: u64,
    },
    /// The checkpoint is intact, but cannot be used with this configuration.
    #[error("{} does not fit this configuration: {reason}", path.display())]
    DoesNotFit {
        /// The checkpoint.
        path: PathBuf,
        /// Why it does not fit.
        reason: String,
    },
}

impl CheckpointError {
    /// The error for a folder `path` without any checkpoint.
    pub fn none_in(path: &Path) -> Self {
        Self::NoneGood { path: path.to_owned(), tried: Vec::new() }
    }
}

fn because(tried: &[String]) -> String {
    if tried.is_empty() { String::new() } else { format!(": {}", tried.join("; ")) }
}

/// The result of functions on checkpoints.
pub type Result<T> = std::result::Result<T, CheckpointError>;

fn io_error<E: ToString>(
    action: &'static str,
    path: &Path,
) -> impl FnOnce(E) -> CheckpointError + use<E> {
    let path = path.to_owned();
    move |error| CheckpointError::Io { action, path, reason: error.to_string() }
}
