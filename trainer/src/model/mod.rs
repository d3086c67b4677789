//! A network's layers over its tensors.
//!
//! [`job::network`] describes what there is; here it computes.

mod layers;
mod module;

pub use module::{Draw, Module};

/// Which statistics batch norm takes, and whether dropout and stochastic depth are at work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Those of the batch, by which the running ones are updated; both are.
    Train,
    /// The running ones, which stay as they are; both are.
    TrainFrozenNorm,
    /// The running ones; neither is.
    Eval,
}
