//! The process's one use of MPI, and values that rank 0 hands to the others.

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

/// MPI can be initialised once a process, and not again after its end.
pub struct Session {
    universe: Mutex<Option<Universe>>,
    /// Communicators that have not been finalized.
    open: AtomicUsize,
    rank: usize,
    world_size: usize,
}

impl Session {
    /// Initialises MPI in this process, or finds it initialised by an earlier call. Collective over
    /// all processes that `mpirun` started, the first time.
    ///
    /// # Errors
    /// [`CommError::Connect`] when somebody else has initialised it, or it allows only one thread.
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

    /// Whether MPI and the environment have this process for the same rank: a library that whoever started
    /// the processes does not know takes each for a world of its own.
    ///
    /// # Errors
    /// A sentence that says what each has it for.
    pub fn fits(&self, world: World) -> std::result::Result<(), String> {
        let Self { rank, world_size, .. } = self;
        if (*rank, *world_size) == (world.rank, world.world_size) {
            return Ok(());
        }
        Err(format!(
            "MPI has this process for rank {rank} of {world_size}, and the environment for rank {} of {}: \
             start it by mpirun, or by srun with a matching --mpi",
            world.rank, world.world_size
        ))
    }

    /// A communicator uses it from now on.
    pub(crate) fn enter(&'static self) -> &'static Self {
        self.open.fetch_add(1, Ordering::AcqRel);
        self
    }

    /// A communicator was finalized. The last one ends MPI in this process; nothing of it may be used
    /// afterwards. Collective.
    pub(crate) fn leave(&self) {
        if self.open.fetch_sub(1, Ordering::AcqRel) == 1 {
            drop(self.universe.lock().unwrap_or_else(PoisonError::into_inner).take());
        }
    }

    /// A store whose values rank 0 sends to all others.
    pub fn store(&'static self) -> BroadcastStore {
        BroadcastStore::new(Comm::world(), self.rank, 0)
    }
}

/// A [`Store`] over `MPI_Bcast`: the first rank puts, and every other rank gets each value once, in the
/// order in which they were put.
pub struct BroadcastStore {
    comm: Comm,
    rank: usize,
    first: usize,
}

impl BroadcastStore {
    /// `rank`: this one, and `first`: the first in `comm`, as errors call them.
    pub(super) fn new(comm: Comm, rank: usize, first: usize) -> Self {
        Self { comm, rank, first }
    }

    /// `bytes`: the value on rank 0, as long as the value on the others. Returns rank 0's.
    fn broadcast(&self, mut bytes: Vec<u8>, timeout: Duration) -> Result<Vec<u8>> {
        let at = At { op: "bootstrap", sequence: 0, rank: self.rank };
        let count = i32::try_from(bytes.len())
            .map_err(|_| at.failed(format!("a value of {} bytes is too long", bytes.len())))?;
        let mut request = Request::null();
        // SAFETY: `bytes` outlives the request, which is waited for below; where that fails, it is never freed.
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

/// The first rank need not wait long for an eager broadcast of a short value.
const PUT_TIMEOUT: Duration = Duration::from_secs(60);

impl Store for BroadcastStore {
    fn put(&self, key: &str, value: &str) -> Result<()> {
        let Self { rank, first, .. } = self;
        if rank != first {
            let reason = format!("rank {rank} cannot publish {key} over MPI, but rank {first} can");
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
