//! NCCL communicators.

use std::ffi::{c_int, c_void};
use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

use crate::cuda::Cuda;
use crate::sys::{CommHandle, Config, DataType, IN_PROGRESS, RedOp, SUCCESS, UniqueId};
use crate::{Error, Nccl, Result};

/// What a communicator is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// The communicator accepts the next call.
    Ready,
    /// A non-blocking call is still in progress in the background.
    InProgress,
}

/// One rank of a group of GPUs. Aborted when dropped, unless finalized.
///
/// Non-blocking with NCCL 2.14 or later: no call waits for peers, so another thread can always
/// [`abort`](Self::abort). After a call the state is [`State::InProgress`] until NCCL has completed it in the
/// background; [`settle`](Self::settle) waits for that, outside of groups.
pub struct Comm {
    nccl: Nccl,
    cuda: Cuda,
    device: usize,
    /// `None` after abort or finalize.
    handle: Mutex<Option<Handle>>,
}

struct Handle(CommHandle);

// SAFETY: NCCL's communicators may be used from any thread, one at a time, which the mutex ensures.
unsafe impl Send for Handle {}

impl Handle {
    fn abort(self, nccl: &Nccl) -> Result<()> {
        // SAFETY: the handle is valid and consumed here, so nothing uses it afterwards.
        let code = unsafe { (nccl.functions.ncclCommAbort)(self.0) };
        nccl.check("ncclCommAbort", code)
    }
}

/// Name of the failed function in an error that NCCL reports only after the call.
pub(crate) const BACKGROUND: &str = "background operation";

/// Timeout of an abort, after which it continues in the background.
const ABORT_TIME: Duration = Duration::from_secs(2);

impl Comm {
    /// Starts connecting `rank` of `world_size` on `device`, which must be the current CUDA device.
    /// Collective.
    ///
    /// <https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/api/comms.html#ncclcomminitrankconfig>
    ///
    /// # Errors
    /// [`Error::Nccl`].
    pub fn init_rank(
        nccl: &Nccl,
        (cuda, device): (&Cuda, usize),
        id: UniqueId,
        rank: usize,
        world_size: usize,
    ) -> Result<Self> {
        let mut handle: CommHandle = std::ptr::null_mut();
        let (ranks, rank) = (as_int(world_size), as_int(rank));
        match nccl.functions.ncclCommInitRankConfig {
            Some(init) => {
                let mut config = Config::INITIALIZER;
                config.blocking = 0;
                // SAFETY: NCCL writes the handle and reads the config during the call.
                let code = unsafe { init(&raw mut handle, ranks, id, rank, &raw mut config) };
                nccl.check("ncclCommInitRankConfig", code)?;
            }
            None => {
                let init = nccl.functions.ncclCommInitRank;
                // SAFETY: NCCL writes the handle.
                let code = unsafe { init(&raw mut handle, ranks, id, rank) };
                nccl.check("ncclCommInitRank", code)?;
            }
        }
        let handle = Mutex::new(Some(Handle(handle)));
        Ok(Self { nccl: nccl.clone(), cuda: cuda.clone(), device, handle })
    }

    /// Returns what the communicator is doing, or the error of a background operation.
    ///
    /// <https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/api/comms.html#ncclcommgetasyncerror>
    ///
    /// # Errors
    /// [`Error::Nccl`], [`Error::Aborted`].
    pub fn state(&self) -> Result<State> {
        self.with(|comm| {
            let mut state = SUCCESS;
            // SAFETY: NCCL writes one code.
            let code = unsafe { (self.nccl.functions.ncclCommGetAsyncError)(comm, &raw mut state) };
            self.nccl.check_for(comm, "ncclCommGetAsyncError", code)?;
            self.nccl.check_for(comm, BACKGROUND, state)?;
            Ok(if state == IN_PROGRESS { State::InProgress } else { State::Ready })
        })
    }

    /// Waits until the last call has completed in the background.
    ///
    /// # Errors
    /// Those of [`Self::state`]; [`Error::Timeout`] with `what`, which names the operation that is waited
    /// for.
    pub fn settle(&self, what: &'static str, timeout: Duration) -> Result<()> {
        let start = Instant::now();
        while self.state()? == State::InProgress {
            let after = start.elapsed();
            if after >= timeout {
                return Err(Error::Timeout { what, after });
            }
            // Launching takes microseconds, connecting seconds.
            if after < Duration::from_millis(1) {
                std::thread::yield_now();
            } else {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        Ok(())
    }

    /// Aborts what runs on this rank's device and frees the communicator. An unresponsive device can block
    /// NCCL here, but not the caller: after two seconds the abort continues in the background.
    ///
    /// <https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/api/comms.html#ncclcommabort>
    ///
    /// # Errors
    /// [`Error::Nccl`], [`Error::Timeout`]; none when the communicator was already aborted or finalized.
    pub fn abort(&self) -> Result<()> {
        let Some(handle) = self.take() else { return Ok(()) };
        let (nccl, cuda, device) = (self.nccl.clone(), self.cuda.clone(), self.device);
        within("ncclCommAbort", ABORT_TIME, move || {
            // NCCL restores the device that is current here. Where this fails, it aborts all the same.
            let _ = cuda.set_device(device);
            handle.abort(&nccl)
        })
    }

    /// Waits for the operations under way on all ranks, and frees the communicator. Collective.
    ///
    /// <https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/api/comms.html#ncclcommfinalize>
    ///
    /// # Errors
    /// Those of [`Self::settle`]; the communicator is aborted then.
    pub fn finalize(&self, timeout: Duration) -> Result<()> {
        if let Some(finalize) = self.nccl.functions.ncclCommFinalize {
            self.with(|comm| {
                // SAFETY: the handle is valid while `with` holds it.
                self.nccl.check_for(comm, "ncclCommFinalize", unsafe { finalize(comm) })
            })?;
            if let Err(error) = self.settle("ncclCommFinalize", timeout) {
                // An error of the abort would only hide the reason.
                let _ = self.abort();
                return Err(error);
            }
        }
        let Some(Handle(comm)) = self.take() else { return Err(Error::Aborted) };
        // SAFETY: the handle is valid and was taken, so nothing uses it afterwards.
        let code = unsafe { (self.nccl.functions.ncclCommDestroy)(comm) };
        self.nccl.check("ncclCommDestroy", code)
    }

    fn take(&self) -> Option<Handle> {
        self.handle.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Calls `body` with the handle, which is not freed meanwhile.
    fn with<R>(&self, body: impl FnOnce(CommHandle) -> Result<R>) -> Result<R> {
        let handle = self.handle.lock().unwrap_or_else(PoisonError::into_inner);
        body(handle.as_ref().ok_or(Error::Aborted)?.0)
    }

    /// Locks the communicator for queueing collectives. It cannot be aborted until the result is dropped.
    ///
    /// # Errors
    /// [`Error::Aborted`].
    pub fn calls(&self) -> Result<Calls<'_>> {
        let handle = self.handle.lock().unwrap_or_else(PoisonError::into_inner);
        if handle.is_none() {
            return Err(Error::Aborted);
        }
        Ok(Calls { nccl: &self.nccl, handle })
    }
}

/// A communicator locked for queueing collectives; see [`Comm::calls`].
pub struct Calls<'a> {
    nccl: &'a Nccl,
    handle: MutexGuard<'a, Option<Handle>>,
}

impl Calls<'_> {
    /// Makes the calls in `body` one operation, an NCCL group.
    ///
    /// <https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/api/group.html#ncclgroupstart>
    ///
    /// # Errors
    /// That of `body`, or [`Error::Nccl`].
    pub fn group(&self, body: impl FnOnce() -> Result<()>) -> Result<()> {
        let functions = &self.nccl.functions;
        // SAFETY: plain call; the group is ended on this thread whatever `body` does.
        self.nccl.check("ncclGroupStart", unsafe { (functions.ncclGroupStart)() })?;
        let result = body();
        // SAFETY: as above.
        result.and(self.nccl.check("ncclGroupEnd", unsafe { (functions.ncclGroupEnd)() }))
    }

    fn call(&self, function: &'static str, body: impl FnOnce(CommHandle) -> c_int) -> Result<()> {
        let comm = self.handle.as_ref().ok_or(Error::Aborted)?.0;
        self.nccl.check_for(comm, function, body(comm))
    }
}

/// The collectives. Each is queued on a CUDA stream; `count` is in elements.
///
/// # Safety
/// For all of them: the pointers must be device memory of the communicator's device, valid until the stream
/// has completed the operation, and `stream` must be a `cudaStream_t` of that device.
#[allow(clippy::missing_safety_doc)]
impl Calls<'_> {
    /// Reduces `data` over all ranks, in place on all ranks.
    ///
    /// <https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/api/colls.html#ncclallreduce>
    ///
    /// # Errors
    /// [`Error::Nccl`].
    pub unsafe fn all_reduce(
        &self,
        data: *mut c_void,
        count: usize,
        dtype: DataType,
        op: RedOp,
        stream: *mut c_void,
    ) -> Result<()> {
        // SAFETY: the caller's promise.
        self.call("ncclAllReduce", |comm| unsafe {
            (self.nccl.functions.ncclAllReduce)(data, data, count, dtype, op, comm, stream)
        })
    }

    /// Copies `root`'s `data` to all ranks.
    ///
    /// <https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/api/colls.html#ncclbroadcast>
    ///
    /// # Errors
    /// [`Error::Nccl`].
    pub unsafe fn broadcast(
        &self,
        data: *mut c_void,
        count: usize,
        dtype: DataType,
        root: usize,
        stream: *mut c_void,
    ) -> Result<()> {
        // SAFETY: the caller's promise.
        self.call("ncclBroadcast", |comm| unsafe {
            let broadcast = self.nccl.functions.ncclBroadcast;
            broadcast(data, data, count, dtype, as_int(root), comm, stream)
        })
    }

    /// Reduces `data` over all ranks, in place on `root`.
    ///
    /// <https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/api/colls.html#ncclreduce>
    ///
    /// # Errors
    /// [`Error::Nccl`].
    pub unsafe fn reduce(
        &self,
        data: *mut c_void,
        count: usize,
        dtype: DataType,
        op: RedOp,
        root: usize,
        stream: *mut c_void,
    ) -> Result<()> {
        // SAFETY: the caller's promise.
        self.call("ncclReduce", |comm| unsafe {
            let reduce = self.nccl.functions.ncclReduce;
            reduce(data, data, count, dtype, op, as_int(root), comm, stream)
        })
    }

    /// Reduces `send`, which has `count` elements for each rank, and leaves each rank its part in `receive`,
    /// which may be that part of `send`.
    ///
    /// <https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/api/colls.html#ncclreducescatter>
    ///
    /// # Errors
    /// [`Error::Nccl`].
    pub unsafe fn reduce_scatter(
        &self,
        send: *const c_void,
        receive: *mut c_void,
        count: usize,
        dtype: DataType,
        op: RedOp,
        stream: *mut c_void,
    ) -> Result<()> {
        // SAFETY: the caller's promise.
        self.call("ncclReduceScatter", |comm| unsafe {
            (self.nccl.functions.ncclReduceScatter)(send, receive, count, dtype, op, comm, stream)
        })
    }

    /// Gathers `send`, of `count` elements, from all ranks into `receive`. `send` may be this rank's part of
    /// `receive`.
    ///
    /// <https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/api/colls.html#ncclallgather>
    ///
    /// # Errors
    /// [`Error::Nccl`].
    pub unsafe fn all_gather(
        &self,
        send: *const c_void,
        receive: *mut c_void,
        count: usize,
        dtype: DataType,
        stream: *mut c_void,
    ) -> Result<()> {
        // SAFETY: the caller's promise.
        self.call("ncclAllGather", |comm| unsafe {
            (self.nccl.functions.ncclAllGather)(send, receive, count, dtype, comm, stream)
        })
    }
}

/// Runs `work` on another thread and waits at most `limit` for its result.
fn within(
    what: &'static str,
    limit: Duration,
    work: impl FnOnce() -> Result<()> + Send + 'static,
) -> Result<()> {
    let (sender, receiver) = mpsc::channel();
    // If no thread can be spawned, the sender is dropped at once, and `recv_timeout` fails.
    let _ = std::thread::Builder::new().name(what.into()).spawn(move || sender.send(work()));
    let late = Err(Error::Timeout { what, after: limit });
    receiver.recv_timeout(limit).unwrap_or(late)
}

impl Drop for Comm {
    fn drop(&mut self) {
        // Nothing can be done about a failure here.
        let _ = self.abort();
    }
}

/// Converts a rank or a world size; NCCL rejects the -1 of one that is out of range.
fn as_int(number: usize) -> c_int {
    c_int::try_from(number).unwrap_or(-1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_that_does_not_end_is_not_waited_for() {
        assert!(within("quick", Duration::from_secs(60), || Ok(())).is_ok());
        let aborted = within("quick", Duration::from_secs(60), || Err(Error::Aborted));
        assert!(matches!(aborted, Err(Error::Aborted)));
        let (_keep, never) = mpsc::channel::<()>();
        let wait_for_ever = move || never.recv().map_err(|_| Error::Aborted);
        let late = within("slow", Duration::from_millis(10), wait_for_ever);
        assert!(matches!(late, Err(Error::Timeout { what: "slow", .. })));
    }
}
