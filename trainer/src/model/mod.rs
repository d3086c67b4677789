//! A network's layers over its tensors.
//!
//! [`job::network`] describes what there is; here it computes.

mod layers;
mod module;

pub use module::{Draw, Module};

/// Whether batch norm uses the batch's statistics and updates the running ones, and whether dropout
/// and stochastic depth are at work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// The batch's own.
    Train,
    /// The running ones.
    Eval,
}
