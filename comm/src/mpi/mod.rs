//! Collectives between CPU ranks of one or several machines, over MPI.
//!
//! Every collective is a non-blocking operation that is polled, so that deadlines and aborts take effect
//! while it waits. MPI does not say which rank is late, and does not notice that ranks called different
//! collectives. Where several machines have the same number of ranks, more than one, an all-reduce goes
//! through shared memory (`machine`), which does both for the ranks of one machine. When a process dies,
//! `mpirun` ends the others. bf16 is sent as it is, and each rank sums its chunk in f32. Results are
//! bit-equal on all ranks with the algorithms of Open MPI and MPICH, which reduce each element once or in
//! mirrored order.
//! Does not read the environment, but MPI does.

mod abort_channel;
mod engine;
mod group;
mod handle;
mod machine;
mod ops;
mod request;
mod session;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::communicator::check_request;
use crate::env::World;
use crate::executor::Executor;
use crate::{
    Blame, Collective, CommError, Communicator, Memory, RawBuffer, Result, SharedMemory, Work,
};
use engine::MpiEngine;
pub use session::{BroadcastStore, Session};

const BACKEND: &str = "mpi";

/// The communicator of a rank in the group of all processes that `mpirun` started.
pub struct Mpi {
    executor: Executor<MpiEngine>,
    session: &'static Session,
    finalized: AtomicBool,
}

/// Connects all processes that `mpirun` started. Collective.
///
/// `hierarchical`: an all-reduce goes through shared memory first where machines have several ranks.
/// `timeout`: of every wait, here and in the collectives that follow. It does not cover MPI's own
/// initialisation and finalisation, which are up to `mpirun`.
///
/// # Errors
/// [`CommError::Connect`] when MPI cannot be initialised or was not started as `world` says; and those of
/// collectives.
pub fn connect(
    world: World,
    hierarchical: bool,
    timeout: Duration,
) -> Result<Arc<dyn Communicator>> {
    let failed = |reason: String| CommError::Connect { backend: BACKEND, reason };
    let session = Session::get()?;
    session.fits(world).map_err(failed)?;
    let engine = MpiEngine::new(world, hierarchical, timeout)
        .map_err(|error| error.while_connecting(BACKEND))?;
    Ok(Arc::new(Mpi {
        executor: Executor::new(engine),
        session: session.enter(),
        finalized: AtomicBool::new(false),
    }))
}

impl Mpi {
    fn check(&self, collective: Collective, buffer: &RawBuffer) -> Result<()> {
        if buffer.memory != Memory::Host {
            let what = "reach memory of a GPU".to_owned();
            return Err(CommError::Unsupported { backend: BACKEND, what });
        }
        check_request(BACKEND, collective, buffer, self.world_size())
    }
}

impl Communicator for Mpi {
    fn rank(&self) -> usize {
        self.executor.engine().rank
    }

    fn world_size(&self) -> usize {
        self.executor.engine().world_size
    }

    fn backend(&self) -> &'static str {
        BACKEND
    }

    unsafe fn start(&self, collective: Collective, buffer: RawBuffer) -> Result<Work> {
        self.check(collective, &buffer)?;
        self.executor.start(collective, buffer)
    }

    unsafe fn run(&self, collective: Collective, buffer: RawBuffer) -> Result<()> {
        self.check(collective, &buffer)?;
        self.executor.run(collective, buffer)
    }

    fn alloc_shared(&self, len_bytes: usize) -> Result<Option<SharedMemory>> {
        self.executor.exclusive(|engine, _| engine.alloc_shared(len_bytes))
    }

    fn abort(&self, reason: &str, blame: Blame) {
        if self.finalized.load(Ordering::Acquire) {
            return; // MPI may have ended, and nobody waits any more
        }
        let (by, text) = (self.rank(), reason.to_owned());
        self.executor.close(CommError::Aborted { by, reason: text, blame: blame.clone() });
        self.executor.engine().common.abort.send(reason, blame);
    }

    fn finalize(&self) -> Result<()> {
        if self.finalized.load(Ordering::Acquire) {
            return Ok(());
        }
        self.executor.exclusive(MpiEngine::finalize)?;
        let what = "run a collective after finalize".to_owned();
        self.executor.close(CommError::Unsupported { backend: BACKEND, what });
        self.executor.engine().common.abort.close();
        self.finalized.store(true, Ordering::Release);
        self.session.leave();
        Ok(())
    }
}

impl Drop for Mpi {
    fn drop(&mut self) {
        if !*self.finalized.get_mut() {
            // No MPI_Finalize: it would wait for peers that may never call it. `mpirun` ends them.
            self.abort(
                &format!("rank {} dropped its communicator before the end", self.rank()),
                Blame::Nobody,
            );
        }
    }
}
