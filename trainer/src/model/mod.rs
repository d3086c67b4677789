//! The networks: one file a family.

mod layers;
mod resnet;

pub use resnet::ResNet;

/// Whether batch norm uses the batch's statistics and updates the running ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// The batch's own.
    Train,
    /// The running ones.
    Eval,
}
