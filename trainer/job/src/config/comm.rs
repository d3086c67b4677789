//! The section `comm`: how ranks communicate.

use serde::{Deserialize, Serialize};

use super::{BucketCap, Invalid};

/// How ranks communicate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Comm {
    /// Backend of the collectives.
    pub backend: CommBackend,
    /// Largest size of a gradient bucket in MiB.
    pub bucket_cap_mib: BucketCap,
    /// Dtype in which gradients are sent.
    pub wire_dtype: WireDtype,
    /// Whether a bucket is all-reduced while backward fills the next one.
    pub overlap: Overlap,
    /// Over MPI, whether the ranks of one machine first reduce in shared memory, before the machines do among
    /// each other.
    pub hierarchical: bool,
    /// Seconds that a rank waits for other ranks before it fails and names them.
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

/// Dtype in which gradients are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WireDtype {
    /// fp32, as gradients are stored.
    Fp32,
    /// bf16, rounded to nearest: half the bytes.
    Bf16,
}

/// Whether gradients are all-reduced during backward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Overlap {
    /// Where that is faster: everywhere except between CPU ranks that share memory.
    Auto,
    /// During backward.
    On,
    /// After backward.
    Off,
}

/// Backend of the collectives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CommBackend {
    /// `nccl` on GPUs; on the CPU `mpi` under `mpirun` or `srun`, else `shm`.
    Auto,
    /// Shared memory: CPU ranks of one machine.
    Shm,
    /// MPI: CPU ranks, across machines too.
    Mpi,
    /// NCCL: GPU ranks, one per GPU.
    Nccl,
    /// As `auto`, but gradients are not reduced, so that ranks diverge. For measurements only.
    None,
}

/// The placement of ranks, as far as the choice of transport depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    /// Ranks are on GPUs rather than on the CPU.
    pub on_gpus: bool,
    /// Ranks are on more than one machine.
    pub on_several_machines: bool,
    /// Ranks were started by `mpirun` or `srun`.
    pub under_mpi: bool,
}

/// The transport that is used, after `auto` is resolved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// Shared memory.
    Shm,
    /// MPI.
    Mpi,
    /// NCCL.
    Nccl,
}

impl Transport {
    /// Returns the name of the transport in a configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Shm => "shm",
            Self::Mpi => "mpi",
            Self::Nccl => "nccl",
        }
    }
}

impl CommBackend {
    /// Resolves the transport for ranks of this placement.
    ///
    /// # Errors
    /// When this backend does not support the placement.
    pub fn transport(self, ranks: Placement) -> Result<Transport, Invalid> {
        let Placement { on_gpus, on_several_machines, under_mpi } = ranks;
        let wrong = |problem: &str| Err(Invalid::new("comm.backend", problem));
        match (self, on_gpus) {
            (Self::Auto | Self::None | Self::Nccl, true) => Ok(Transport::Nccl),
            (Self::Shm, true) => {
                wrong("shm is for the CPU; on GPUs use nccl, or auto, which picks it")
            }
            (Self::Mpi, true) => {
                wrong("mpi is for the CPU; on GPUs use nccl, or auto, which picks it")
            }
            (Self::Nccl, false) => {
                wrong("nccl is for GPUs; on the CPU use shm or mpi, or auto, which picks one")
            }
            (Self::Shm, false) if on_several_machines => {
                wrong("shm is for one machine; across machines use mpi, or auto, which picks it")
            }
            (Self::Shm, false) => Ok(Transport::Shm),
            (Self::Mpi, false) => Ok(Transport::Mpi),
            (Self::Auto | Self::None, false) if on_several_machines || under_mpi => {
                Ok(Transport::Mpi)
            }
            (Self::Auto | Self::None, false) => Ok(Transport::Shm),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: Placement =
        Placement { on_gpus: false, on_several_machines: false, under_mpi: false };

    #[test]
    fn auto_takes_what_serves_the_ranks() {
        let several = Placement { on_several_machines: true, ..HERE };
        let under_mpi = Placement { under_mpi: true, ..HERE };
        for backend in [CommBackend::Auto, CommBackend::None] {
            let taken = |ranks| backend.transport(ranks).unwrap();
            assert_eq!(taken(HERE), Transport::Shm);
            assert_eq!((taken(several), taken(under_mpi)), (Transport::Mpi, Transport::Mpi));
            for ranks in [HERE, several, under_mpi] {
                assert_eq!(taken(Placement { on_gpus: true, ..ranks }), Transport::Nccl);
            }
        }
    }

    #[test]
    fn a_backend_that_does_not_serve_them_is_refused_and_named() {
        let gpus = Placement { on_gpus: true, ..HERE };
        let several = Placement { on_several_machines: true, ..HERE };
        for (backend, ranks) in [
            (CommBackend::Nccl, HERE),
            (CommBackend::Shm, several),
            (CommBackend::Shm, gpus),
            (CommBackend::Mpi, gpus),
        ] {
            let error = backend.transport(ranks).unwrap_err().to_string();
            let name = format!("{backend:?}").to_lowercase();
            assert!(error.starts_with(&format!("comm.backend: {name} ")), "{error}");
        }
        assert_eq!(CommBackend::Mpi.transport(HERE), Ok(Transport::Mpi));
        assert_eq!(CommBackend::Shm.transport(HERE), Ok(Transport::Shm));
    }
}
