//! One rank of a data-parallel training job.
//!
//! [`run`] is the training loop, and the other modules are the parts that it calls: [`data`] makes batches,
//! [`model`] computes logits from them, [`flat`] holds all parameters and all gradients in one buffer each,
//! [`grad_sync`] sums gradients over ranks, [`optim`] takes the optimizer step, [`checkpoint`] and
//! [`metrics`] write the files of a run.

// Start-up of a rank.
pub mod cli;
pub mod connect;
pub mod device;
pub mod link;
pub mod log;
mod resume;
pub mod setup;

// The network and its tensors.
pub mod describe;
pub mod flat;
pub mod init;
pub mod model;
pub mod pretrained;
pub mod replica;

// One training step.
pub mod arithmetic;
mod bucket_cap;
pub mod collective;
pub mod convolutions;
pub mod cuda_graph;
pub mod data;
pub mod grad_sync;
pub mod loss;
pub mod loss_scaler;
pub mod optim;
pub mod schedule;
pub mod step;

// A whole run and the files that it writes.
pub mod checkpoint;
pub mod ema;
pub mod eval;
pub mod metrics;
pub mod rank_0;
pub mod recorder;
pub mod run;
pub mod saver;
pub mod step_times;
pub mod tally;

// Subcommands other than training, such as `trainer eval`.
pub mod commands;
pub mod confusion;
pub mod measure;
pub mod tta;

mod error;

pub use error::{Result, TrainError, caught, keep_panics_short};
