//! How ranks find each other and connect.

use std::sync::Arc;
use std::time::Duration;

use crate::env::World;
pub use crate::memory_store::MemoryStore;
use crate::single::Single;
use crate::{CommError, Communicator, Result, nccl, shm};

/// A key-value store through which ranks exchange small values before they are connected.
pub trait Store: Send + Sync {
    /// Publishes `value` under `key`. Each key is published once.
    ///
    /// # Errors
    /// [`crate::CommError::Control`] when the store is gone.
    fn put(&self, key: &str, value: &str) -> Result<()>;

    /// Waits until some rank has published `key`, and returns its value, or `None` after `timeout`.
    ///
    /// # Errors
    /// [`crate::CommError::Control`] when the store is gone.
    fn get(&self, key: &str, timeout: Duration) -> Result<Option<String>>;
}

/// Waits, on behalf of `rank`, for the value that rank `by` publishes under `key`.
///
/// # Errors
/// Those of the store, and [`crate::CommError::Timeout`], which names `by`.
pub(crate) fn published(
    store: &dyn Store,
    key: &str,
    by: usize,
    rank: usize,
    timeout: Duration,
) -> Result<String> {
    store.get(key, timeout)?.ok_or_else(|| CommError::Timeout {
        op: "connect",
        sequence: 0,
        rank,
        missing: vec![by],
        waited: timeout,
        detail: format!("rank {by} has published no {key}"),
    })
}

/// Path of the `mpirun` that belongs to the MPI library of this build, if it uses one.
#[cfg(feature = "mpi")]
pub const MPIRUN: Option<&str> = option_env!("LOCKSTEP_MPIRUN");

/// Path of the `mpirun` that belongs to the MPI library of this build, if it uses one.
#[cfg(not(feature = "mpi"))]
pub const MPIRUN: Option<&str> = None;

/// Returns the version of the NCCL library that is found at run time.
///
/// # Errors
/// [`crate::CommError::Connect`] where there is none.
pub fn nccl_version() -> Result<String> {
    let failed = |error: String| CommError::Connect { backend: "nccl", reason: error };
    let library = nccl_rs::Nccl::open().map_err(|error| failed(error.to_string()))?;
    let version = library.version().map_err(|error| failed(error.to_string()))?;
    Ok(version.to_string())
}

/// Checks that the installed driver supports the CUDA version that libtorch was built for. Also `Ok` where
/// the driver or the runtime is not found: other checks report that better.
///
/// # Errors
/// A sentence with both versions.
pub fn check_driver_supports_cuda() -> std::result::Result<(), String> {
    use nccl_rs::CudaVersion;
    match (CudaVersion::of_driver(), CudaVersion::of_runtime()) {
        (Ok(driver), Ok(runtime)) if driver.major < runtime.major => Err(format!(
            "the driver supports CUDA up to {driver}, but libtorch is built for {runtime}"
        )),
        _ => Ok(()),
    }
}

/// Which backend to connect over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// Shared memory, for CPU ranks of one machine.
    Shm,
    /// MPI, for CPU ranks across machines.
    Mpi {
        /// Whether an all-reduce goes through shared memory first where machines have several ranks.
        hierarchical: bool,
    },
    /// NCCL, one rank per GPU.
    Nccl {
        /// The CUDA device of this rank.
        device: usize,
    },
}

/// Connects this process with its peers. Collective: every rank calls it with the same backend.
///
/// `store`: needed by `shm` for more than one rank, and by `nccl` unless MPI started the job. One store
/// serves at most one group of each backend, since the keys are fixed.
/// `timeout`: of every wait, here and in the collectives that follow.
///
/// # Errors
/// [`crate::CommError::Connect`] with what would help; [`crate::CommError::Timeout`],
/// [`crate::CommError::PeerGone`] and [`crate::CommError::Aborted`] as in collectives.
pub fn connect(
    backend: Backend,
    world: World,
    store: Option<&dyn Store>,
    timeout: Duration,
) -> Result<Arc<dyn Communicator>> {
    if world.world_size == 1 {
        return Ok(Arc::new(Single::default()));
    }
    match backend {
        Backend::Shm => connect_shm(world, store, timeout),
        Backend::Mpi { hierarchical } => connect_mpi(world, hierarchical, timeout),
        Backend::Nccl { device } => nccl::connect(world, device, store, timeout),
    }
}

fn connect_shm(
    world: World,
    store: Option<&dyn Store>,
    timeout: Duration,
) -> Result<Arc<dyn Communicator>> {
    let failed = |reason: String| Err(CommError::Connect { backend: "shm", reason });
    let World { rank, world_size, local_world_size, .. } = world;
    if local_world_size != world_size {
        return failed(format!(
            "only {local_world_size} of {world_size} ranks are on this machine, and shared memory \
             does not reach other machines: use mpi, or nccl on GPUs"
        ));
    }
    let Some(store) = store else {
        return failed(
            "ranks need a store to find each other: start them with the launcher".to_owned(),
        );
    };
    Ok(Arc::new(shm::connect(rank, 0..world_size, store, "comm/shm", timeout)?))
}

#[cfg(feature = "mpi")]
fn connect_mpi(
    world: World,
    hierarchical: bool,
    timeout: Duration,
) -> Result<Arc<dyn Communicator>> {
    crate::mpi::connect(world, hierarchical, timeout)
}

#[cfg(not(feature = "mpi"))]
fn connect_mpi(_: World, _: bool, _: Duration) -> Result<Arc<dyn Communicator>> {
    let reason = "this build has no MPI: build the trainer with --features mpi";
    Err(CommError::Connect { backend: "mpi", reason: reason.to_owned() })
}
