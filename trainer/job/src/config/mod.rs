//! The configuration: its keys, their defaults and their ranges.
//!
//! [`load()`] reads a file and applies overrides; errors name file, line and dotted path. The environment is
//! not read.

mod augment;
mod bucket_cap;
mod comm;
mod data;
mod diff;
mod document;
mod error;
mod eval;
mod keys;
mod load;
mod marks;
mod model;
mod normalization;
mod optimizer;
mod performance;
mod records;
mod schedule;
#[cfg(test)]
mod tests;
mod train;
mod validate;

use serde::{Deserialize, Serialize};

pub use augment::{
    Augment, ColorJitter, Crop, Cutmix, Cutout, Flip, FlipMode, Mixup, Padding, RandAugment,
};
pub use bucket_cap::BucketCap;
pub use comm::{Comm, CommBackend, Overlap, Placement, Transport, WireDtype};
pub use data::{Data, Dataset, Facts, Fallback};
pub use diff::{Difference, PER_MACHINE, common_to_machines, differences_in_training, in_one_line};
pub use document::Document;
pub use error::{ConfigError, Location};
pub use eval::{Eval, Tta};
pub use keys::nearest;
pub use load::{load, refused, to_yaml};
pub use model::{Model, Stem};
pub use normalization::Normalization;
pub use optimizer::{AdjustLr, AuxOptimizer, LrScaling, Optimizer, OptimizerName};
pub use performance::{Convolution, CudaGraph, Performance, Precision};
pub use records::{Checkpoint, Metrics};
pub use schedule::{Schedule, ScheduleName, Unit, Update};
pub use train::Train;
pub use validate::{Invalid, validate};

pub use crate::network::ModelName;

/// Everything that describes a run, except for the number and placement of ranks.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The network.
    pub model: Model,
    /// The images.
    pub data: Data,
    /// Length of the training, and batch sizes.
    pub train: Train,
    /// How a network is evaluated.
    pub eval: Eval,
    /// Optimizer and its hyperparameters.
    pub optimizer: Optimizer,
    /// Learning rate over the run.
    pub schedule: Schedule,
    /// Dtype of the forward and backward pass; parameters are always fp32.
    pub precision: Precision,
    /// When checkpoints are saved.
    pub checkpoint: Checkpoint,
    /// What metrics are recorded.
    pub metrics: Metrics,
    /// How ranks communicate.
    pub comm: Comm,
    /// Options that make a step faster without changing what it computes.
    pub performance: Performance,
}

impl Config {
    /// Sets the keys of the chosen optimizer and schedule that are not given to their defaults.
    fn fill_in(&mut self) {
        self.optimizer.fill_in();
        self.schedule.fill_in();
    }
}
