//! Collectives between the ranks of one training job.
//!
//! A [`Communicator`] moves gradients: over NCCL between GPUs, through one shared-memory segment between CPU
//! ranks of a machine, over MPI between machines. It knows nothing of tensors: a buffer is an address, a
//! length, a dtype and the memory it lies in. Every wait has a deadline, except initialising and finalizing
//! MPI itself; an error names the rank that caused it where the backend can know it.
//!
//! [`control`] is the control plane: small messages between a trainer and its launcher. It never
//! carries tensors, and collectives never wait for it once the ranks are connected.

mod blame;
pub mod bootstrap;
pub mod bucket;
pub mod buffer;
pub mod communicator;
pub mod control;
pub mod env;
mod error;
mod executor;
mod memory_store;
#[cfg(feature = "mpi")]
pub mod mpi;
pub mod nccl;
mod reduce;
pub mod shm;
pub mod single;

pub use blame::Blame;
pub use buffer::{BufferMut, DType, Element, Memory, RawBuffer};
pub use communicator::{Collective, Communicator, ReduceOp, SharedMemory, Work};
pub use error::{CommError, Result};
