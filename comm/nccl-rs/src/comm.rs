//! Communicators.

use std::ffi::{c_int, c_void};
use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

use crate::cuda::Cuda;
use crate::sys::{CommHandle, Config, DataType, IN_PROGRESS, RedOp, SUCCESS, UniqueId};
use crate::{Error, Nccl, Result};

/// What a communicator is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It takes the next call.
    Ready,
    /// A non-blocking call goes on in the background.
    InProgress,
}

/// One rank of a group of GPUs. Aborted when dropped, unless finalized.
///
/// Non-blocking where NCCL is 2.14 or later: no call waits for peers, so another thread can always
/// [`abort`](Self::abort). After a call the state is [`State::InProgress`] until NCCL has dealt with
/// it; [`settle`](Self::settle) waits for that, outside of groups.
pub struct Comm {
    nccl: Nccl,
    cuda: Cuda,
    device: usize,
    /// `None` after abort or finalize.
    handle: Mutex<Option<Handle>>,
}

struct Handle(CommHandle);

// SAFETY: NCCL's communicators may be used from any thread, one at a time, which the mutex sees to.
unsafe impl Send for Handle {}

impl Handle {
    fn abort(self, nccl: &Nccl) -> Result<()> {
        // SAFETY: the handle is valid and ends here, so nobody uses it afterwards.
        let code = unsafe { (nccl.functions.ncclCommAbort)(self.0) };
        nccl.check("ncclCommAbort", code)
    }
}

/// What failed, where NCCL tells of it after the call.
pub(crate) const BACKGROUND: &str = "background operation";

/// How long an abort is waited for.
const ABORT_TIME: Duration = Duration::from_secs(2);

impl Comm {
    /// Begins to connect `rank` of `world_size` on `device`, the current CUDA device. Collective.
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

    /// What the communicator is doing, or what has gone wrong in the background.
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

    /// Waits until the last call has been dealt with.
    ///
    /// # Errors
    /// Those of [`Self::state`]; [`Error::Timeout`], `what` being what was waited for.
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

    /// Stops what runs on the device, here, and frees the communicator. A device that does not answer
    /// keeps NCCL waiting, but not the caller: after two seconds that goes on in the background.
    ///
    /// <https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/api/comms.html#ncclcommabort>
    ///
    /// # Errors
    /// [`Error::Nccl`], [`Error::Timeout`]; none when that has happened already.
    pub fn abort(&self) -> Result<()> {
        let Some(handle) = self.take() else { return Ok(()) };
        let (nccl, cuda, device) = (self.nccl.clone(), self.cuda.clone(), self.device);
        within("ncclCommAbort", ABORT_TIME, move || {
            // NCCL puts back the device that it finds. Where this fails, it aborts all the same.
            let _ = cuda.set_device(device);
            handle.abort(&nccl)
        })
    }

    /// Waits for what is under way on all ranks, and frees the communicator. Collective.
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
                // What it says would only hide the reason.
                let _ = self.abort();
                return Err(error);
            }
        }
        let Some(Handle(comm)) = self.take() else { return Err(Error::Aborted) };
        // SAFETY: the handle is valid and was taken, so nobody uses it afterwards.
        let code = unsafe { (self.nccl.functions.ncclCommDestroy)(comm) };
        self.nccl.check("ncclCommDestroy", code)
    }

    fn take(&self) -> Option<Handle> {
        self.handle.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Calls `body` with the handle, which nobody frees meanwhile.
    fn with<R>(&self, body: impl FnOnce(CommHandle) -> Result<R>) -> Result<R> {
        let handle = self.handle.lock().unwrap_or_else(PoisonError::into_inner);
        body(handle.as_ref().ok_or(Error::Aborted)?.0)
    }

    /// Begins to queue collectives. Nobody can abort the communicator until the result is dropped.
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

/// A communicator while collectives are queued; see [`Comm::calls`].
pub struct Calls<'a> {
    nccl: &'a Nccl,
    handle: MutexGuard<'a, Option<Handle>>,
}

impl Calls<'_> {
    /// Makes the calls in `body` one operation.
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

/// The collectives, in place on `count` elements, queued on a CUDA stream.
///
/// # Safety
/// Of all of them: the pointers are device memory of the communicator's device, valid until the
/// stream has come to the end of the operation, and `stream` is a `cudaStream_t` of that device.
#[allow(clippy::missing_safety_doc)]
impl Calls<'_> {
    /// Reduces `data` over all ranks, to all ranks.
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

    /// Reduces `data` over all ranks, to `root`.
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

    /// Reduces `send`, of `count` elements a rank, and leaves each rank its part in `receive`, which
    /// may be that part of `send`.
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

    /// Gathers `send`, of `count` elements, from all ranks in `receive`, of which `send` may be this
    /// rank's part.
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

/// Does `work` on another thread, and waits for `limit` at most.
fn within(
    what: &'static str,
    limit: Duration,
    work: impl FnOnce() -> Result<()> + Send + 'static,
) -> Result<()> {
    let (sender, receiver) = mpsc::channel();
    // Where there can be no thread, the sender is dropped at once, and nothing comes.
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

/// A rank or a number of ranks; NCCL refuses what is out of range.
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
