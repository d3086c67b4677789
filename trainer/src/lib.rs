//! One rank of a data-parallel training job.
//!
//! [`run`] is the loop; everything else is a part that it calls: [`data`] makes batches, [`model`]
//! turns them into logits, [`flat`] holds parameters and gradients in one buffer each,
//! [`grad_sync`] adds gradients up over ranks, [`optim`] takes the step, [`checkpoint`] and [`metrics`]
//! write what is left of a run.

pub mod arithmetic;
mod bucket_cap;
pub mod checkpoint;
pub mod cli;
pub mod commands;
pub mod confusion;
pub mod connect;
pub mod convolutions;
pub mod cuda_graph;
pub mod data;
pub mod describe;
pub mod device;
pub mod ema;
mod error;
pub mod eval;
pub mod flat;
pub mod grad_sync;
pub mod init;
pub mod link;
pub mod log;
pub mod loss;
pub mod loss_scaler;
pub mod measure;
pub mod metrics;
pub mod model;
pub mod optim;
pub mod patience;
pub mod pretrained;
pub mod recorder;
pub mod replica;
mod resume;
pub mod run;
pub mod schedule;
pub mod setup;
pub mod step;
pub mod step_times;
pub mod tally;
pub mod tta;

pub use error::{Result, TrainError, caught, keep_panics_short};
