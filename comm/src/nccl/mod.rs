//! Collectives between GPUs, one rank per GPU, over NCCL, which is opened at run time.
//!
//! Collectives run on the communicator's own stream, ordered with the buffer's stream by events: a collective
//! begins when what was queued on the buffer's stream before is done, and [`Work::wait`] makes what is queued
//! there afterwards wait for the result. The host does not block, except for a buffer in host memory: that is
//! staged on the device, and `wait` waits for the result.
//!
//! A watchdog observes the collectives under way: an error that NCCL reports, or a passed deadline, aborts
//! the communicator, so that no kernel waits for ever. NCCL cannot say which rank is late, and an
//! abort does not reach the other processes: they fail at their own deadline, or when the launcher
//! stops them. Whether maximum and minimum propagate NaN is up to NCCL.
//!
//! While the buffer's stream is being captured into a CUDA graph, nothing is executed, and the watchdog
//! observes each replay instead. A capture that fails in CUDA leaves the communicator usable; one that
//! fails in NCCL ends it. NCCL waits for graphs that contain its kernels: they must be dropped before the
//! communicator is.
//!
//! Tested with one, two and four ranks on one GPU, not yet with several GPUs.
//!
//! Does not read the environment, but NCCL does.

mod collectives;
mod host;
mod watchdog;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nccl_rs::cuda::{Cuda, Event, Stream};
use nccl_rs::{Comm, Nccl as Library, UniqueId};

use crate::bootstrap::{Store, published};
use crate::communicator::{Pending, check_request};
use crate::env::World;
use crate::{Blame, Collective, CommError, Communicator, Memory, RawBuffer, Result, Work};
use host::HostWork;
use watchdog::{InFlight, Watched};

const BACKEND: &str = "nccl";

/// Key under which rank 0 publishes the unique id of the group.
const ID_KEY: &str = "comm/nccl";

/// The communicator of a rank in a group of GPUs.
pub struct Nccl {
    shared: Arc<Shared>,
    watchdog: Option<JoinHandle<()>>,
    /// Held while a collective is queued, so that concurrent callers do not interleave events and
    /// collectives.
    launching: Mutex<()>,
    /// The MPI session, where the unique id was exchanged over MPI; left in `finalize`.
    #[cfg(feature = "mpi")]
    session: Option<&'static crate::mpi::Session>,
}

/// State shared by the communicator, its watchdog and its [`Work`]s.
struct Shared {
    cuda: Cuda,
    comm: Comm,
    stream: Stream,
    device: usize,
    rank: usize,
    world_size: usize,
    timeout: Duration,
    watched: Watched,
}

/// Connects this rank, on CUDA device `device`. Collective.
///
/// # Errors
/// [`CommError::Connect`] where there is no such GPU or no NCCL; [`CommError::Timeout`] where a peer does
/// not join before the deadline.
pub fn connect(
    world: World,
    device: usize,
    store: Option<&dyn Store>,
    timeout: Duration,
) -> Result<Arc<dyn Communicator>> {
    let deadline = Instant::now() + timeout;
    let cuda = Cuda::open().map_err(failed)?;
    let devices = cuda.device_count().map_err(failed)?;
    if device >= devices {
        return Err(failed(format!(
            "CUDA device {device} was asked for; number of visible devices: {devices}"
        )));
    }
    let library = Library::open().map_err(failed)?;
    let id = exchange_id(&library, world, store, timeout)?;
    let _guard = cuda.use_device(device).map_err(failed)?;
    let stream = cuda.stream().map_err(failed)?;
    let World { rank, world_size, .. } = world;
    let comm = Comm::init_rank(&library, (&cuda, device), id, rank, world_size).map_err(failed)?;
    let left = deadline.saturating_duration_since(Instant::now());
    comm.settle("connecting all ranks", left).map_err(|error| match error {
        nccl_rs::Error::Timeout { .. } => timeout_error("connect", 0, rank, timeout),
        other => failed(other),
    })?;
    if let Ok(version) = library.version() {
        tracing::debug!(%version, rank, world_size, device, "NCCL connected");
    }
    let watched = Watched::default();
    let shared = Shared { cuda, comm, stream, device, rank, world_size, timeout, watched };
    Nccl::new(shared, store.is_none()).map(|nccl| Arc::new(nccl) as Arc<dyn Communicator>)
}

fn failed(reason: impl ToString) -> CommError {
    CommError::Connect { backend: BACKEND, reason: reason.to_string() }
}

fn timeout_error(op: &'static str, sequence: u64, rank: usize, waited: Duration) -> CommError {
    let detail = "NCCL does not say which".to_owned();
    CommError::Timeout { op, sequence, rank, missing: Vec::new(), waited, detail }
}

fn exchange_id(
    library: &Library,
    world: World,
    store: Option<&dyn Store>,
    timeout: Duration,
) -> Result<UniqueId> {
    match store {
        Some(store) => exchange_id_over(library, world, store, timeout),
        #[cfg(feature = "mpi")]
        None => {
            let session = crate::mpi::Session::get()?;
            session.fits(world).map_err(failed)?;
            exchange_id_over(library, world, &session.store(), timeout)
        }
        #[cfg(not(feature = "mpi"))]
        None => Err(failed(
            "ranks need a way to exchange NCCL's id: start them with the launcher, or build with \
             --features mpi and start them with mpirun",
        )),
    }
}

fn exchange_id_over(
    library: &Library,
    world: World,
    store: &dyn Store,
    timeout: Duration,
) -> Result<UniqueId> {
    if world.rank == 0 {
        let id = library.unique_id().map_err(failed)?;
        store.put(ID_KEY, &to_hex(&id))?;
        return Ok(id);
    }
    let text = published(store, ID_KEY, 0, world.rank, timeout)?;
    from_hex(&text).ok_or_else(|| failed(format!("{text:?} in the store is not NCCL's id")))
}

fn to_hex(id: &UniqueId) -> String {
    id.internal.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Option<UniqueId> {
    let mut internal = [0; 128];
    if text.len() != 2 * internal.len() || !text.is_ascii() {
        return None;
    }
    for (i, byte) in internal.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).ok()?;
    }
    Some(UniqueId { internal })
}

impl Nccl {
    #[cfg_attr(not(feature = "mpi"), allow(unused_variables))]
    fn new(shared: Shared, over_mpi: bool) -> Result<Self> {
        let shared = Arc::new(shared);
        let watching = Arc::clone(&shared);
        let watchdog = std::thread::Builder::new()
            .name("nccl watchdog".into())
            .spawn(move || watching.watch())
            .map_err(|error| failed(format!("cannot start the watchdog: {error}")))?;
        Ok(Self {
            shared,
            watchdog: Some(watchdog),
            launching: Mutex::default(),
            #[cfg(feature = "mpi")]
            session: if over_mpi { Some(crate::mpi::Session::get()?.enter()) } else { None },
        })
    }

    fn launching(&self) -> MutexGuard<'_, ()> {
        self.launching.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Communicator for Nccl {
    fn rank(&self) -> usize {
        self.shared.rank
    }

    fn world_size(&self) -> usize {
        self.shared.world_size
    }

    fn backend(&self) -> &'static str {
        BACKEND
    }

    unsafe fn start(&self, collective: Collective, buffer: RawBuffer) -> Result<Work> {
        let shared = &self.shared;
        check_request(BACKEND, collective, &buffer, shared.world_size)?;
        let _launching = self.launching();
        let sequence = shared.watched.next_sequence()?;
        match buffer.memory {
            Memory::Cuda { device, stream } if device == shared.device => {
                // SAFETY: the caller gives a stream of this device.
                let is_capturing = unsafe { shared.cuda.is_capturing(stream) };
                let queued = shared.queue_after(stream, collective, &buffer);
                let op = collective.name();
                let done = match is_capturing {
                    Ok(true) => shared.captured(op, sequence, queued)?,
                    Ok(false) => shared.watch_flight(op, sequence, queued)?,
                    Err(error) => shared.queued(op, sequence, Err(error))?,
                };
                Ok(Work::new(DeviceWork { shared: Arc::clone(shared), done, stream, sequence }))
            }
            Memory::Cuda { device, .. } => {
                let what = format!("reach device {device}: it works on device {}", shared.device);
                Err(CommError::Unsupported { backend: BACKEND, what })
            }
            Memory::Host => HostWork::start(shared, collective, buffer, sequence).map(Work::new),
        }
    }

    fn check(&self) -> Result<()> {
        let shared = &self.shared;
        shared.watched.outcome(u64::MAX)?;
        // An error that the watchdog has not seen yet.
        match shared.comm.state() {
            Ok(_) => Ok(()),
            // Finalized, or aborted in this process for a reason that is recorded.
            Err(nccl_rs::Error::Aborted) => shared.watched.outcome(u64::MAX),
            Err(error) => {
                let sequence = shared.watched.newest();
                Err(shared.fail(shared.error("check", sequence, &error)))
            }
        }
    }

    unsafe fn watch_replay(&self, stream: *mut std::ffi::c_void) -> Result<()> {
        let shared = &self.shared;
        let _launching = self.launching();
        let sequence = shared.watched.next_sequence()?;
        // SAFETY: the caller gives a stream of this device.
        let recorded = shared
            .cuda
            .use_device(shared.device)
            .and_then(|_guard| unsafe { shared.cuda.record(stream) });
        shared.watch_flight("replayed collectives", sequence, recorded)?;
        Ok(())
    }

    fn abort(&self, reason: &str, blame: Blame) {
        let error = CommError::Aborted { by: self.rank(), reason: reason.to_owned(), blame };
        self.shared.fail(error);
    }

    fn finalize(&self) -> Result<()> {
        let shared = &self.shared;
        let _launching = self.launching();
        if shared.watched.is_finalized() {
            return Ok(());
        }
        let sequence = shared.watched.next_sequence()?;
        shared.watched.wait_until_idle()?;
        let ended = shared.comm.finalize(shared.timeout);
        ended.map_err(|error| shared.error("finalize", sequence, &error))?;
        let what = "run a collective after finalize".to_owned();
        shared.watched.set_finalized(CommError::Unsupported { backend: BACKEND, what });
        #[cfg(feature = "mpi")]
        if let Some(session) = self.session {
            session.leave();
        }
        Ok(())
    }
}

impl Drop for Nccl {
    fn drop(&mut self) {
        if !self.shared.watched.is_finalized() {
            self.abort("the communicator was dropped before its end", Blame::Nobody);
        }
        self.shared.watched.leave();
        if let Some(watchdog) = self.watchdog.take() {
            // It does not panic, and nothing could be done about it here.
            let _ = watchdog.join();
        }
    }
}

impl Shared {
    /// Queues a collective behind the work on `stream`, and returns the event of its end.
    fn queue_after(
        &self,
        stream: *mut std::ffi::c_void,
        collective: Collective,
        buffer: &RawBuffer,
    ) -> nccl_rs::Result<Event> {
        let _guard = self.cuda.use_device(self.device)?;
        // SAFETY: the caller of `start` gives a stream of this device.
        let ready = unsafe { self.cuda.record(stream) }?;
        // SAFETY: the communicator's own stream.
        unsafe { self.cuda.wait_on_stream(self.stream.handle(), &ready) }?;
        self.queue(collective, buffer)?;
        // SAFETY: as above.
        unsafe { self.cuda.record(self.stream.handle()) }
    }

    /// Hands a queued collective to the watchdog; fails the communicator where it could not be queued.
    fn watch_flight(
        &self,
        op: &'static str,
        sequence: u64,
        queued: nccl_rs::Result<Event>,
    ) -> Result<Arc<Event>> {
        let done = self.queued(op, sequence, queued)?;
        self.watched.add(InFlight { op, sequence, done: Arc::clone(&done) });
        Ok(done)
    }

    /// Handles a collective that was captured: fails where it could not be. An event recorded during a
    /// capture cannot be queried, so the watchdog does not get it.
    fn captured(
        &self,
        op: &'static str,
        sequence: u64,
        queued: nccl_rs::Result<Event>,
    ) -> Result<Arc<Event>> {
        match queued {
            Err(error) if communicator_survives(&error) => Err(self.error(op, sequence, &error)),
            other => self.queued(op, sequence, other),
        }
    }

    /// Fails the communicator where a collective could not be queued.
    fn queued(
        &self,
        op: &'static str,
        sequence: u64,
        queued: nccl_rs::Result<Event>,
    ) -> Result<Arc<Event>> {
        queued.map(Arc::new).map_err(|error| self.fail(self.error(op, sequence, &error)))
    }

    fn error(&self, op: &'static str, sequence: u64, error: &nccl_rs::Error) -> CommError {
        match error {
            nccl_rs::Error::Timeout { after, .. } => timeout_error(op, sequence, self.rank, *after),
            error if error.is_of_a_peer() => {
                let (rank, reason) = (self.rank, error.to_string());
                CommError::PeerLost { op, sequence, rank, reason }
            }
            error => {
                CommError::Collective { op, sequence, rank: self.rank, reason: error.to_string() }
            }
        }
    }
}

/// Returns whether the communicator remains usable after this error within a capture. An error of CUDA only
/// ends the capture, of which nothing is executed; NCCL keeps an error of its own and returns it from all
/// later calls.
fn communicator_survives(error: &nccl_rs::Error) -> bool {
    matches!(error, nccl_rs::Error::Cuda { .. })
}

/// Handle of a collective on device memory.
struct DeviceWork {
    shared: Arc<Shared>,
    done: Arc<Event>,
    stream: *mut std::ffi::c_void,
    sequence: u64,
}

// SAFETY: CUDA's streams may be used from any thread.
unsafe impl Send for DeviceWork {}

impl Pending for DeviceWork {
    fn wait(&mut self) -> Result<()> {
        self.shared.watched.outcome(self.sequence)?;
        let failed = |error: nccl_rs::Error| self.shared.error("wait", self.sequence, &error);
        // The null stream means that of the current device.
        let _guard = self.shared.cuda.use_device(self.shared.device).map_err(failed)?;
        // SAFETY: the caller of `start` gave the stream, which lives as long as the buffer is used.
        unsafe { self.shared.cuda.wait_on_stream(self.stream, &self.done) }.map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_error_of_nccls_ends_the_communicator_within_a_capture() {
        let text = String::new;
        let cuda = nccl_rs::Error::Cuda { function: "cudaEventRecord", code: 901, text: text() };
        assert!(communicator_survives(&cuda));
        let (function, detail) = ("ncclAllReduce", text());
        let nccl = nccl_rs::Error::Nccl { function, code: 1, text: text(), detail };
        assert!(!communicator_survives(&nccl));
        let (what, after) = ("launching a collective", Duration::ZERO);
        assert!(!communicator_survives(&nccl_rs::Error::Timeout { what, after }));
    }

    #[test]
    fn an_id_survives_the_store() {
        let id = UniqueId { internal: std::array::from_fn(|i| (i * 7 % 256) as u8) };
        assert!(from_hex(&to_hex(&id)) == Some(id));
        assert!(from_hex("00").is_none());
        assert!(from_hex(&"x".repeat(256)).is_none());
        assert!(from_hex(&"é".repeat(128)).is_none());
    }
}
