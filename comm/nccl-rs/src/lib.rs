//! A thin binding to NCCL and to the few functions of the CUDA runtime that its use needs, opened at run
//! time: one binary serves machines with and without a GPU.
//!
//! - [`sys`]: the raw C functions, in a table filled by `dlopen`;
//! - [`Nccl`] and [`Comm`]: results with NCCL's error texts, and communicators that are aborted when
//!   dropped;
//! - [`cuda`]: devices, streams, events and staging memory of the CUDA runtime.
//!
//! Does not read the environment, but NCCL does (`NCCL_DEBUG` and others).

mod comm;
pub mod cuda;
mod error;
mod library;
pub mod sys;
mod versions;

pub use comm::{Calls, Comm, State};
pub use error::{Error, Result};
pub use library::{Nccl, Version};
pub use sys::{DataType, RedOp, UniqueId};
pub use versions::CudaVersion;
