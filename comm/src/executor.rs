//! Runs collectives of one communicator one after another, in the order in which they were started.
//!
//! Used by the backends whose collectives block a CPU thread. A thread that waits for a collective which is
//! still queued runs it itself, and everything queued before it, so a blocking call never pays for a thread
//! switch. Only [`Executor::start`] needs the communication thread, which the first such call spawns.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use crate::communicator::Pending;
use crate::{Collective, CommError, RawBuffer, Result, Work};

/// One queued collective.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Job {
    /// Number of collectives that this communicator had started before this one.
    pub(crate) sequence: u64,
    pub(crate) collective: Collective,
    pub(crate) buffer: RawBuffer,
}

/// A backend that blocks while it runs a collective. Never called by two threads at a time.
pub(crate) trait Engine: Send + Sync + 'static {
    /// Runs `job` to completion.
    fn run(&self, job: &Job) -> Result<()>;
}

/// The queue of a communicator, and its communication thread once there is one.
pub(crate) struct Executor<E: Engine> {
    shared: Arc<Shared<E>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared<E> {
    engine: E,
    state: Mutex<State>,
    /// Signalled when there is work for the communication thread, or when it shall exit.
    queued: Condvar,
    /// Signalled when a collective has ended.
    ended: Condvar,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Job>,
    /// Whether some thread is running a collective.
    busy: bool,
    started: u64,
    ended: u64,
    /// First failure, and its sequence number: this and all later collectives fail with it.
    failed: Option<(u64, CommError)>,
    /// Error for every collective started after [`Executor::close`].
    closed: Option<CommError>,
    /// Whether the communication thread shall exit once the queue is empty.
    leaving: bool,
}

impl State {
    fn refusal(&self) -> Option<CommError> {
        self.failed.as_ref().map(|(_, error)| error).or(self.closed.as_ref()).cloned()
    }

    fn next_sequence(&mut self) -> u64 {
        self.started += 1;
        self.started - 1
    }

    fn outcome(&self, sequence: u64) -> Result<()> {
        match &self.failed {
            Some((first, error)) if *first <= sequence => Err(error.clone()),
            _ => Ok(()),
        }
    }
}

impl<E: Engine> Executor<E> {
    /// Creates an executor, without a thread yet.
    pub(crate) fn new(engine: E) -> Self {
        let shared = Shared {
            engine,
            state: Mutex::default(),
            queued: Condvar::new(),
            ended: Condvar::new(),
        };
        Self { shared: Arc::new(shared), thread: Mutex::new(None) }
    }

    pub(crate) fn engine(&self) -> &E {
        &self.shared.engine
    }

    /// Queues a collective for the communication thread.
    pub(crate) fn start(&self, collective: Collective, buffer: RawBuffer) -> Result<Work> {
        self.ensure_thread()?;
        let mut state = self.shared.lock();
        let sequence = enqueue(&mut state, collective, buffer)?;
        drop(state);
        self.shared.queued.notify_one();
        Ok(Work::new(Ticket { shared: Arc::clone(&self.shared), sequence }))
    }

    /// Runs a collective on the calling thread, after all that were started before it.
    pub(crate) fn run(&self, collective: Collective, buffer: RawBuffer) -> Result<()> {
        let mut state = self.shared.lock();
        let sequence = enqueue(&mut state, collective, buffer)?;
        self.shared.wait_for(state, sequence)
    }

    /// Calls `body` with a sequence number of its own, while no collective runs. An error of `body` fails the
    /// communicator.
    pub(crate) fn exclusive<R>(&self, body: impl FnOnce(&E, u64) -> Result<R>) -> Result<R> {
        let shared = &*self.shared;
        let mut state = shared.lock();
        while state.busy || !state.queue.is_empty() {
            state = shared.advance(state);
        }
        if let Some(error) = state.refusal() {
            return Err(error);
        }
        let sequence = state.next_sequence();
        state.busy = true;
        drop(state);
        let result = guarded(sequence, || body(&shared.engine, sequence));
        let failure = result.as_ref().err().cloned();
        drop(shared.finish(sequence, failure));
        result
    }

    /// Makes every collective that is started from now on fail with `reason`.
    pub(crate) fn close(&self, reason: CommError) {
        self.shared.lock().closed.get_or_insert(reason);
    }

    fn ensure_thread(&self) -> Result<()> {
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if thread.is_none() {
            let shared = Arc::clone(&self.shared);
            let spawned = std::thread::Builder::new()
                .name("communication".into())
                .spawn(move || shared.serve())
                .map_err(|error| CommError::Thread(error.to_string()))?;
            *thread = Some(spawned);
        }
        Ok(())
    }
}

impl<E: Engine> Drop for Executor<E> {
    fn drop(&mut self) {
        self.shared.lock().leaving = true;
        self.shared.queued.notify_one();
        let thread = self.thread.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // A panic in an engine has already become the communicator's failure.
            let _ = thread.join();
        }
    }
}

impl<E: Engine> Shared<E> {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self) {
        let mut state = self.lock();
        loop {
            if !state.busy && !state.queue.is_empty() {
                state = self.advance(state);
            } else if state.leaving && state.queue.is_empty() {
                return;
            } else {
                state = self.queued.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    fn wait_for<'a>(&'a self, mut state: MutexGuard<'a, State>, sequence: u64) -> Result<()> {
        while state.ended <= sequence {
            state = self.advance(state);
        }
        state.outcome(sequence)
    }

    /// Runs the first queued collective, or waits for the one that another thread is running.
    fn advance<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        if state.busy {
            return self.ended.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let Some(job) = state.queue.pop_front() else { return state };
        if state.failed.is_some() {
            state.ended = job.sequence + 1;
            self.ended.notify_all();
            return state;
        }
        state.busy = true;
        drop(state);
        let result = guarded(job.sequence, || self.engine.run(&job));
        self.finish(job.sequence, result.err())
    }

    fn finish(&self, sequence: u64, failure: Option<CommError>) -> MutexGuard<'_, State> {
        let mut state = self.lock();
        state.busy = false;
        state.ended = sequence + 1;
        if let Some(error) = failure {
            state.failed.get_or_insert((sequence, error));
        }
        self.ended.notify_all();
        if !state.queue.is_empty() {
            self.queued.notify_one();
        }
        state
    }
}

fn enqueue(state: &mut State, collective: Collective, buffer: RawBuffer) -> Result<u64> {
    if let Some(error) = state.refusal() {
        return Err(error);
    }
    let sequence = state.next_sequence();
    state.queue.push_back(Job { sequence, collective, buffer });
    Ok(sequence)
}

/// Turns a panic of `body` into an error, so that the queue does not stay busy for ever.
fn guarded<R>(sequence: u64, body: impl FnOnce() -> Result<R>) -> Result<R> {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or(Err(CommError::Panicked { sequence }))
}

struct Ticket<E> {
    shared: Arc<Shared<E>>,
    sequence: u64,
}

impl<E: Engine> Pending for Ticket<E> {
    fn wait(&mut self) -> Result<()> {
        self.shared.wait_for(self.shared.lock(), self.sequence)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Blame, BufferMut, ReduceOp};
    use std::thread::ThreadId;

    /// Records which thread ran which collective; fails at `fail_at`.
    #[derive(Default)]
    struct Recorder {
        ran: Mutex<Vec<(u64, ThreadId)>>,
        fail_at: Option<u64>,
    }

    impl Engine for Recorder {
        fn run(&self, job: &Job) -> Result<()> {
            self.ran.lock().unwrap().push((job.sequence, std::thread::current().id()));
            if self.fail_at == Some(job.sequence) {
                let (by, reason) = (3, "test".to_owned());
                return Err(CommError::Aborted { by, reason, blame: Blame::Nobody });
            }
            Ok(())
        }
    }

    fn empty() -> RawBuffer {
        BufferMut::host::<f32>(&mut []).raw()
    }

    const SUM: Collective = Collective::AllReduce(ReduceOp::Sum);

    #[test]
    fn a_blocking_call_runs_on_the_callers_thread() {
        let executor = Executor::new(Recorder::default());
        executor.run(SUM, empty()).unwrap();
        let ran = executor.engine().ran.lock().unwrap().clone();
        assert_eq!(ran, [(0, std::thread::current().id())]);
    }

    #[test]
    fn collectives_run_in_the_order_in_which_they_were_started() {
        let executor = Executor::new(Recorder::default());
        let mut works: Vec<_> = (0..50).map(|_| executor.start(SUM, empty()).unwrap()).collect();
        executor.run(SUM, empty()).unwrap();
        // Waited for in the opposite order.
        while let Some(work) = works.pop() {
            work.wait().unwrap();
        }
        let order: Vec<_> = executor.engine().ran.lock().unwrap().iter().map(|r| r.0).collect();
        assert_eq!(order, (0..51).collect::<Vec<_>>());
    }

    #[test]
    fn after_a_failure_nothing_runs_and_everything_names_it() {
        let executor = Executor::new(Recorder { fail_at: Some(1), ..Recorder::default() });
        let works: Vec<_> = (0..2).map(|_| executor.start(SUM, empty()).unwrap()).collect();
        let results: Vec<_> = works.into_iter().map(Work::wait).collect();
        assert!(results[0].is_ok());
        assert!(matches!(results[1], Err(CommError::Aborted { by: 3, .. })));
        assert!(matches!(executor.run(SUM, empty()), Err(CommError::Aborted { by: 3, .. })));
        assert_eq!(executor.engine().ran.lock().unwrap().len(), 2);
    }

    #[test]
    fn a_panic_becomes_an_error() {
        struct Panics;
        impl Engine for Panics {
            fn run(&self, _: &Job) -> Result<()> {
                panic!("on purpose");
            }
        }
        let executor = Executor::new(Panics);
        let error = executor.run(SUM, empty()).unwrap_err();
        assert!(matches!(error, CommError::Panicked { sequence: 0 }), "{error}");
    }
}
