//! How ranks talk.

use serde::{Deserialize, Serialize};

use super::{BucketCap, Invalid};

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

/// Where ranks are, as far as it decides over what they talk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Whereabouts {
    /// On GPUs, not on the CPU.
    pub on_gpus: bool,
    /// Not all on one machine.
    pub on_several_machines: bool,
    /// `mpirun` or `srun` started them.
    pub under_mpi: bool,
}

/// Over what ranks talk, decided.
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
    /// As in a configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Shm => "shm",
            Self::Mpi => "mpi",
            Self::Nccl => "nccl",
        }
    }
}

impl CommBackend {
    /// Over what ranks talk that are there.
    ///
    /// # Errors
    /// When this backend does not serve them.
    pub fn transport(self, ranks: Whereabouts) -> Result<Transport, Invalid> {
        let Whereabouts { on_gpus, on_several_machines, under_mpi } = ranks;
        let wrong = |problem: &str| Err(Invalid::new("comm.backend", problem));
        match (self, on_gpus) {
            (Self::Auto | Self::None | Self::Nccl, true) => Ok(Transport::Nccl),
            (Self::Shm, true) => {
                wrong("shm is for the CPU; on GPUs it is nccl, or auto, which picks it")
            }
            (Self::Mpi, true) => {
                wrong("mpi is for the CPU; on GPUs it is nccl, or auto, which picks it")
            }
            (Self::Nccl, false) => {
                wrong("nccl is for GPUs; on the CPU it is shm or mpi, or auto, which picks one")
            }
            (Self::Shm, false) if on_several_machines => {
                wrong("shm ends at the machine; across machines it is mpi, or auto, which picks it")
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

    const HERE: Whereabouts =
        Whereabouts { on_gpus: false, on_several_machines: false, under_mpi: false };

    #[test]
    fn auto_takes_what_serves_the_ranks() {
        let several = Whereabouts { on_several_machines: true, ..HERE };
        let under_mpi = Whereabouts { under_mpi: true, ..HERE };
        for backend in [CommBackend::Auto, CommBackend::None] {
            let taken = |ranks| backend.transport(ranks).unwrap();
            assert_eq!(taken(HERE), Transport::Shm);
            assert_eq!((taken(several), taken(under_mpi)), (Transport::Mpi, Transport::Mpi));
            for ranks in [HERE, several, under_mpi] {
                assert_eq!(taken(Whereabouts { on_gpus: true, ..ranks }), Transport::Nccl);
            }
        }
    }

    #[test]
    fn a_backend_that_does_not_serve_them_is_refused_and_named() {
        let gpus = Whereabouts { on_gpus: true, ..HERE };
        let several = Whereabouts { on_several_machines: true, ..HERE };
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
    }
}
