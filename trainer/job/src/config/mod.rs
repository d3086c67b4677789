//! The configuration: its keys, their defaults and their ranges.
//!
//! [`load`] reads a file and applies overrides; whatever is wrong is named by file, line and dotted
//! path. Does not read the environment.

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
pub use comm::{Comm, CommBackend, Overlap, Transport, Whereabouts, WireDtype};
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

/// Everything that describes a run, but for how many ranks and where they are.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The network.
    pub model: Model,
    /// The images.
    pub data: Data,
    /// How long and in what batches.
    pub train: Train,
    /// How a network is measured.
    pub eval: Eval,
    /// How gradients become updates.
    pub optimizer: Optimizer,
    /// How the learning rate changes.
    pub schedule: Schedule,
    /// What the forward and backward pass compute in; parameters are always fp32.
    pub precision: Precision,
    /// When the run is saved.
    pub checkpoint: Checkpoint,
    /// What is recorded.
    pub metrics: Metrics,
    /// How ranks talk.
    pub comm: Comm,
    /// What makes a step faster without changing what it computes.
    pub performance: Performance,
}

impl Config {
    /// Sets the keys of the chosen optimizer and schedule that are not given to their defaults.
    fn fill_in(&mut self) {
        self.optimizer.fill_in();
        self.schedule.fill_in();
    }
}
