//! Checkpoints: all or nothing on disk.
//!
//! One is a folder with `model.safetensors`, `optimizer.safetensors`, `state.json`, where weights are
//! averaged `ema.safetensors`, and
//! `manifest.json`, which holds the hash of each of the others and is written last. [`save`] writes
//! into a temporary folder that is renamed when it is complete and on disk; `load` reads only what
//! its manifest vouches for. Nothing here can execute what it reads.

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
pub use save::{Link, point, put_back, save};
pub use state::State;

const MODEL: &str = "model.safetensors";
const EMA: &str = "ema.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
const STATE: &str = "state.json";
const MANIFEST: &str = "manifest.json";
/// Folders that are not complete begin so.
const TEMPORARY: &str = ".saving-";
/// The extension of a checkpoint that another of its name takes the place of.
const REPLACED: &str = "replaced";

/// Which of a checkpoint's weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weights {
    /// Those that training goes on with.
    Model,
    /// Their moving average, see [`crate::ema`].
    Ema,
}

/// A checkpoint could not be written or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// Reading or writing failed.
    #[error("cannot {action} {}: {reason}", path.display())]
    Io {
        /// `write` or `read`.
        action: &'static str,
        /// What.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A tensor is not one that can be written, which is a bug.
    #[error("{} cannot hold this tensor: {reason}", path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A checkpoint is not what was written.
    #[error("{} is damaged: {reason}", path.display())]
    Damaged {
        /// The checkpoint.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Nothing to load.
    #[error("{} holds no checkpoint that can be read{}", path.display(), because(tried))]
    NoneGood {
        /// Where was looked.
        path: PathBuf,
        /// What was found, and why each was refused.
        tried: Vec<String>,
    },
    /// It is a checkpoint of something else.
    #[error("{} does not fit this configuration: {reason}", path.display())]
    DoesNotFit {
        /// The checkpoint.
        path: PathBuf,
        /// What differs.
        reason: String,
    },
}

impl CheckpointError {
    /// Nothing in `path` looks like a checkpoint.
    pub fn none_in(path: &Path) -> Self {
        Self::NoneGood { path: path.to_owned(), tried: Vec::new() }
    }
}

fn because(tried: &[String]) -> String {
    if tried.is_empty() { String::new() } else { format!(": {}", tried.join("; ")) }
}

/// The result of anything about checkpoints.
pub type Result<T> = std::result::Result<T, CheckpointError>;

fn io_error<E: ToString>(
    action: &'static str,
    path: &Path,
) -> impl FnOnce(E) -> CheckpointError + use<E> {
    let path = path.to_owned();
    move |error| CheckpointError::Io { action, path, reason: error.to_string() }
}
