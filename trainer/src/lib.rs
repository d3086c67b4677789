//! One rank of a data-parallel training job.
//!
//! [`run`] is the loop; everything else is a part that it calls: [`data`] makes batches, [`model`]
//! turns them into logits, [`flat`] holds parameters and gradients in one buffer each,
//! [`grad_sync`] adds gradients up over ranks, [`optim`] takes the step, [`checkpoint`] and [`metrics`]
//! write what is left of a run.

// A rank's start.
pub mod cli;
pub mod connect;
pub mod device;
pub mod link;
pub mod log;
mod resume;
pub mod setup;

// The network, and its numbers.
pub mod describe;
pub mod flat;
pub mod init;
pub mod model;
pub mod pretrained;
pub mod replica;

// A step.
pub mod arithmetic;
mod bucket_cap;
pub mod convolutions;
pub mod cuda_graph;
pub mod data;
pub mod grad_sync;
pub mod loss;
pub mod loss_scaler;
pub mod optim;
pub mod schedule;
pub mod step;

// A run, and what is left of it.
pub mod checkpoint;
pub mod ema;
pub mod eval;
pub mod metrics;
pub mod patience;
pub mod recorder;
pub mod run;
pub mod saver;
pub mod step_times;
pub mod tally;

// What is asked of a run besides: `trainer eval` and the like.
pub mod commands;
pub mod confusion;
pub mod measure;
pub mod tta;

mod error;

pub use error::{Result, TrainError, caught, keep_panics_short};
