//! MPI's lifetime in this process, and a [`Store`] over MPI.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use mpi::Threading;
use mpi::environment::Universe;
use mpi::ffi;
use mpi::traits::Communicator as _;

use super::handle::Comm;
use super::request::{At, Request, checked};
use crate::bootstrap::Store;
use crate::env::World;
use crate::{CommError, Result};

/// MPI in this process, which can be initialised only once, and not again after it was finalized.
pub struct Session {
    universe: Mutex<Option<Universe>>,
    /// Number of communicators that use MPI and have not been finalized.
    open: AtomicUsize,
    rank: usize,
    world_size: usize,
}

impl Session {
    /// Initialises MPI in this process, or finds it initialised by an earlier call. Collective over
    /// all processes that `mpirun` started, the first time.
    ///
    /// # Errors
    /// [`CommError::Connect`] when other code has initialised MPI, or the library supports only one thread.
    pub fn get() -> Result<&'static Self> {
        static SESSION: OnceLock<std::result::Result<Session, String>> = OnceLock::new();
        SESSION
            .get_or_init(Self::initialise)
            .as_ref()
            .map_err(|reason| CommError::Connect { backend: "mpi", reason: reason.clone() })
    }

    fn initialise() -> std::result::Result<Self, String> {
        // `abort` may be called while the communication thread is in MPI.
        let (universe, threading) = mpi::initialize_with_threading(Threading::Multiple)
            .ok_or("MPI has been initialised in this process already")?;
        if threading != Threading::Multiple {
            return Err("this MPI library was built without MPI_THREAD_MULTIPLE".to_owned());
        }
        let world = universe.world();
        let at = At { op: "connect", sequence: 0, rank: 0 };
        Comm::world().return_errors(at).map_err(|error| error.to_string())?;
        let rank = usize::try_from(world.rank()).map_err(|error| error.to_string())?;
        let world_size = usize::try_from(world.size()).map_err(|error| error.to_string())?;
        Ok(Self {
            universe: Mutex::new(Some(universe)),
            open: AtomicUsize::new(0),
            rank,
            world_size,
        })
    }

    /// Checks that MPI and the environment agree on this process's rank: an MPI library that does not match
    /// the program that started the processes makes each of them a world of its own.
    ///
    /// # Errors
    /// A sentence with both ranks and world sizes.
    pub fn fits(&self, world: World) -> std::result::Result<(), String> {
        let Self { rank, world_size, .. } = self;
        if (*rank, *world_size) == (world.rank, world.world_size) {
            return Ok(());
        }
        Err(format!(
            "this process is rank {rank} of {world_size} for MPI, but rank {} of {} in the \
             environment: start it with this MPI's mpirun, or with srun and a matching --mpi",
            world.rank, world.world_size
        ))
    }

    /// Registers a communicator that uses MPI.
    pub(crate) fn enter(&'static self) -> &'static Self {
        self.open.fetch_add(1, Ordering::AcqRel);
        self
    }

    /// Deregisters a communicator that was finalized. The last one finalizes MPI in this process; nothing of
    /// MPI may be used afterwards. Collective.
    pub(crate) fn leave(&self) {
        if self.open.fetch_sub(1, Ordering::AcqRel) == 1 {
            drop(self.universe.lock().unwrap_or_else(PoisonError::into_inner).take());
        }
    }

    /// Returns a store through which rank 0 sends values to all other ranks.
    pub fn store(&'static self) -> BroadcastStore {
        BroadcastStore::new(Comm::world(), self.rank, 0)
    }
}

/// A [`Store`] over `MPI_Bcast`: the first rank puts values, and every other rank must get each of them once,
/// in the order in which they were put.
pub struct BroadcastStore {
    comm: Comm,
    rank: usize,
    first: usize,
}

impl BroadcastStore {
    /// `rank`: this rank; `first`: the first rank of `comm`; both as errors name them.
    pub(super) fn new(comm: Comm, rank: usize, first: usize) -> Self {
        Self { comm, rank, first }
    }

    /// Broadcasts from the first rank. `bytes`: the value on the first rank, a buffer of the same length on
    /// the others. Returns the first rank's value.
    fn broadcast(&self, mut bytes: Vec<u8>, timeout: Duration) -> Result<Vec<u8>> {
        let at = At { op: "bootstrap", sequence: 0, rank: self.rank };
        let count = i32::try_from(bytes.len())
            .map_err(|_| at.failed(format!("a value of {} bytes is too long", bytes.len())))?;
        let mut request = Request::null();
        // SAFETY: `bytes` outlives the request, which is waited for below; if that fails, `bytes` is leaked.
        checked(at, unsafe {
            ffi::MPI_Ibcast(
                bytes.as_mut_ptr().cast(),
                count,
                ffi::RSMPI_UINT8_T,
                0,
                self.comm.0,
                request.as_mut_ptr(),
            )
        })?;
        match request.wait(at, timeout, || None) {
            Ok(()) => Ok(bytes),
            Err(error) => {
                bytes.leak();
                Err(error)
            }
        }
    }
}

/// Timeout of a `put`: the first rank need not wait long for an eager broadcast of a short value.
const PUT_TIMEOUT: Duration = Duration::from_secs(60);

impl Store for BroadcastStore {
    fn put(&self, key: &str, value: &str) -> Result<()> {
        let Self { rank, first, .. } = self;
        if rank != first {
            let reason =
                format!("rank {rank} cannot publish {key} over MPI: only rank {first} can");
            return Err(CommError::Control(reason));
        }
        let text = format!("{key}\n{value}");
        let length = (text.len() as u64).to_le_bytes();
        self.broadcast(length.to_vec(), PUT_TIMEOUT)?;
        self.broadcast(text.into_bytes(), PUT_TIMEOUT).map(drop)
    }

    fn get(&self, key: &str, timeout: Duration) -> Result<Option<String>> {
        let length = match self.broadcast(vec![0; size_of::<u64>()], timeout) {
            Err(CommError::Timeout { .. }) => return Ok(None),
            other => other?,
        };
        let length = length.try_into().map_or(0, u64::from_le_bytes);
        let text = self.broadcast(vec![0; usize::try_from(length).unwrap_or(0)], timeout)?;
        let text = String::from_utf8_lossy(&text);
        match text.split_once('\n') {
            Some((found, value)) if found == key => Ok(Some(value.to_owned())),
            _ => {
                let first = self.first;
                let reason = format!("rank {first} published {text:?} instead of {key}");
                Err(CommError::Control(reason))
            }
        }
    }
}
