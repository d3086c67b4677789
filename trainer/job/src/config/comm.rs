//! How ranks talk.

use serde::{Deserialize, Serialize};

use super::BucketCap;

/// How ranks talk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Comm {
    /// Over what.
    pub backend: CommBackend,
    /// Gradients are summed in buckets of at most so many MiB.
    pub bucket_cap_mib: BucketCap,
    /// What gradients are sent as.
    pub wire_dtype: WireDtype,
    /// Whether a bucket is summed while backward fills the next.
    pub overlap: Overlap,
    /// Over MPI, whether ranks of one machine add up in shared memory before the machines do.
    pub hierarchical: bool,
    /// How long a rank waits for others before it names them and gives up.
    pub timeout_seconds: u64,
}

impl Default for Comm {
    fn default() -> Self {
        Self {
            backend: CommBackend::Auto,
            bucket_cap_mib: BucketCap::Auto,
            wire_dtype: WireDtype::Fp32,
            overlap: Overlap::Auto,
            hierarchical: true,
            timeout_seconds: 120,
        }
    }
}

/// What gradients are sent as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WireDtype {
    /// As they are.
    Fp32,
    /// Rounded to nearest: half the bytes.
    Bf16,
}

/// Whether gradients are summed while backward goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Overlap {
    /// Where it is faster: not between CPU ranks that share memory.
    Auto,
    /// Yes.
    On,
    /// No: after backward.
    Off,
}

/// Over what ranks talk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CommBackend {
    /// `nccl` on GPUs; on the CPU `mpi` under `mpirun` or `srun`, else `shm`.
    Auto,
    /// Shared memory: CPU ranks of one machine.
    Shm,
    /// MPI: CPU ranks, across machines too.
    Mpi,
    /// NCCL: one rank a GPU.
    Nccl,
    /// As `auto`, but gradients stay where they are: ranks diverge. For measuring only.
    None,
}
