//! The layers of a network, which compute logits from images.
//!
//! They are built from the description of the network in [`job::network`], over the tensors in flat storage.

mod layers;
mod module;

pub use module::{Draw, Module};

/// Selects the statistics of batch norm, and whether dropout and stochastic depth are active.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Batch norm takes the statistics of the batch and updates the running ones; dropout and stochastic
    /// depth are active.
    Train,
    /// Batch norm takes the running statistics and does not change them; dropout and stochastic depth are
    /// active.
    TrainFrozenNorm,
    /// Batch norm takes the running statistics and does not change them; dropout and stochastic depth are
    /// inactive.
    Eval,
}
