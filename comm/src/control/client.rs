//! The trainer's end of the control connection.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{PROTOCOL, ToLauncher, ToTrainer, read_frame, write_frame};
use crate::bootstrap::Store;
use crate::{CommError, Result};

/// A flag, with a reason, that is set when this rank shall stop. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct StopFlag(Arc<Mutex<Option<String>>>);

impl StopFlag {
    /// Requests a stop; the first reason stays.
    pub fn request(&self, reason: &str) {
        lock(&self.0).get_or_insert_with(|| reason.to_owned());
    }

    /// Returns the reason to stop, if a stop was requested.
    pub fn reason(&self) -> Option<String> {
        lock(&self.0).clone()
    }
}

/// Interval at which a rank sends its heartbeat, [`ToLauncher::Heartbeat`].
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);

/// The connection of a rank to its launcher.
///
/// One thread reads incoming messages, another sends the heartbeat [`ToLauncher::Heartbeat`] once a second. All
/// other messages are sent on the caller's thread, which waits for an answer only in [`Store::get`].
pub struct ControlClient {
    stream: Arc<Mutex<UnixStream>>,
    inbox: Arc<Inbox>,
}

#[derive(Default)]
struct Inbox {
    state: Mutex<InboxState>,
    changed: Condvar,
}

#[derive(Default)]
struct InboxState {
    values: HashMap<String, String>,
    /// Why the connection was closed, if it was.
    closed: Option<String>,
}

impl ControlClient {
    /// Connects to the launcher's socket and says hello.
    ///
    /// `stop` is requested when the launcher sends [`ToTrainer::Stop`], and when the connection is lost.
    ///
    /// # Errors
    /// [`CommError::Control`] when nothing listens on `socket`.
    pub fn connect(socket: &Path, rank: usize, stop: StopFlag) -> Result<Self> {
        let failed = |error: std::io::Error| {
            CommError::Control(format!("cannot reach {}: {error}", socket.display()))
        };
        let stream = UnixStream::connect(socket).map_err(failed)?;
        let reader = stream.try_clone().map_err(failed)?;
        let inbox = Arc::new(Inbox::default());
        let thread_inbox = Arc::clone(&inbox);
        std::thread::Builder::new()
            .name("control".into())
            .spawn(move || read_messages(reader, &thread_inbox, &stop))
            .map_err(failed)?;
        let client = Self { stream: Arc::new(Mutex::new(stream)), inbox };
        client.send(&ToLauncher::Hello {
            protocol: PROTOCOL,
            rank,
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        })?;
        let stream = Arc::downgrade(&client.stream);
        std::thread::Builder::new()
            .name("alive".into())
            .spawn(move || send_heartbeats(&stream))
            .map_err(failed)?;
        Ok(client)
    }

    /// Sends one message, or drops it if sending would block: a message that matters only at this moment must
    /// not hold up a rank whose launcher is suspended.
    ///
    /// # Errors
    /// [`CommError::Control`] when the launcher is gone.
    pub fn try_send(&self, message: &ToLauncher) -> Result<()> {
        try_send(&self.stream, message)
    }

    /// Sends one message.
    ///
    /// # Errors
    /// [`CommError::Control`] when the launcher is gone.
    pub fn send(&self, message: &ToLauncher) -> Result<()> {
        write_frame(&mut *lock(&self.stream), message)
            .map_err(|error| CommError::Control(error.to_string()))
    }
}

impl Store for ControlClient {
    fn put(&self, key: &str, value: &str) -> Result<()> {
        self.send(&ToLauncher::Put { key: key.to_owned(), value: value.to_owned() })
    }

    fn get(&self, key: &str, timeout: Duration) -> Result<Option<String>> {
        self.send(&ToLauncher::Get { key: key.to_owned() })?;
        let deadline = Instant::now() + timeout;
        let mut state = lock(&self.inbox.state);
        loop {
            if let Some(value) = state.values.remove(key) {
                return Ok(Some(value));
            }
            if let Some(reason) = &state.closed {
                return Err(CommError::Control(reason.clone()));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            state = self
                .inbox
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}

fn try_send(stream: &Mutex<UnixStream>, message: &ToLauncher) -> Result<()> {
    let mut stream = lock(stream);
    // The kernel reports a stream as writable only while a good part of its buffer is free, which is
    // far more than a frame.
    let mut fds = [PollFd::new(&*stream, PollFlags::OUT)];
    match poll(&mut fds, Some(&Timespec::default())) {
        Ok(0) => Ok(()),
        _ => write_frame(&mut *stream, message)
            .map_err(|error| CommError::Control(error.to_string())),
    }
}

/// Sends heartbeats until the client is dropped or the launcher is gone.
fn send_heartbeats(stream: &Weak<Mutex<UnixStream>>) {
    while let Some(stream) = stream.upgrade() {
        if try_send(&stream, &ToLauncher::Heartbeat).is_err() {
            return;
        }
        drop(stream);
        std::thread::sleep(HEARTBEAT_INTERVAL);
    }
}

fn read_messages(mut stream: UnixStream, inbox: &Inbox, stop: &StopFlag) {
    let reason = loop {
        match read_frame(&mut stream) {
            Ok(Some(ToTrainer::Value { key, value })) => {
                lock(&inbox.state).values.insert(key, value);
                inbox.changed.notify_all();
            }
            Ok(Some(ToTrainer::Stop { reason })) => stop.request(&reason),
            Ok(None) => break "the launcher is gone".to_owned(),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {
                break "the launcher is gone".to_owned();
            }
            Err(error) => break format!("the launcher cannot be reached any more: {error}"),
        }
    };
    stop.request(&reason);
    lock(&inbox.state).closed = Some(reason);
    inbox.changed.notify_all();
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;
    use crate::control::Phase;

    #[test]
    fn a_launcher_that_does_not_read_holds_nobody_up() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("control");
        let listener = UnixListener::bind(&socket).unwrap();
        let client = ControlClient::connect(&socket, 0, StopFlag::default()).unwrap();
        let (unread, _) = listener.accept().unwrap();
        let message = ToLauncher::State { phase: Phase::Training, epoch: 1, step: 1 };
        // Far more than any socket buffer takes: a blocking send would never return.
        for _ in 0..200_000 {
            client.try_send(&message).unwrap();
        }
        drop(unread);
        assert!(client.try_send(&message).is_err());
    }
}
