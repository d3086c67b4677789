//! The launcher's end of the control connections to the ranks of this node.
//!
//! Ranks publish values for each other here, report what they do, and are asked to stop. One control server
//! serves one attempt at the job, so that no value outlives the processes that it is about. In a job of
//! several nodes, node 0's control server keeps the values, and the others forward what their ranks put and
//! get.

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use comm::control::{self, PROTOCOL, ToLauncher, ToTrainer};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::net::unix::OwnedReadHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc::{self, UnboundedSender};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::cluster::message::ToMember;
use crate::frame::read_body;
use crate::private_folder::private_folder;

/// Time within which a process that connects must say which rank it is; after that it is disconnected.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// An event on a rank's control connection.
#[derive(Debug)]
pub enum Message {
    /// A message of the rank that the control server does not handle itself.
    Said {
        /// The rank.
        rank: usize,
        /// The message.
        message: ToLauncher,
    },
    /// The rank's hello was refused: its version or protocol is not that of the launcher.
    Refused {
        /// The rank.
        rank: usize,
        /// The reason.
        reason: String,
    },
}

/// Where the values that ranks publish for each other are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreLocation {
    /// In this control server.
    Local,
    /// At node 0's launcher: what ranks put, and what they get and is not known here, is forwarded as
    /// messages.
    Node0,
}

/// Listens to the ranks of this node. The socket is removed when this is dropped, and as soon as all ranks
/// have connected, so that a launcher that is killed leaves nothing behind.
pub struct ControlServer {
    shared: Arc<Shared>,
    socket: PathBuf,
    accepting: AbortHandle,
}

/// Access to the values that ranks publish for each other, on behalf of other nodes.
#[derive(Clone)]
pub struct KeyValueStore(Arc<Shared>);

impl KeyValueStore {
    /// Publishes a value that came from another node.
    pub fn put(&self, key: String, value: String) {
        self.0.state().put(key, value);
    }

    /// Sends the value of `key` to `node` as soon as a rank has published it.
    pub fn get_for(&self, node: UnboundedSender<ToMember>, key: String) {
        self.0.state().get(Asker::Node(node), key);
    }
}

struct Shared {
    state: Mutex<State>,
    ranks: Range<usize>,
    store_location: StoreLocation,
    /// State of each rank's connection, indexed from the first rank of this node.
    connections: Vec<watch::Sender<Connection>>,
    messages: UnboundedSender<Message>,
}

#[derive(Default)]
struct State {
    values: HashMap<String, String>,
    waiting: HashMap<String, Vec<Asker>>,
    ranks: HashMap<usize, UnboundedSender<ToTrainer>>,
    stop: Option<String>,
    folder: Option<TempDir>,
}

/// Who waits for a value.
enum Asker {
    Rank(usize),
    Node(UnboundedSender<ToMember>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Connection {
    NotYet,
    Open,
    Closed,
}

impl ControlServer {
    /// Listens for `ranks` on a socket that only this user can reach. Their messages go to `messages`, those
    /// of a rank in order.
    ///
    /// # Errors
    /// When the socket cannot be created.
    pub fn listen(
        ranks: Range<usize>,
        store_location: StoreLocation,
        messages: UnboundedSender<Message>,
    ) -> io::Result<Self> {
        let (folder, socket) = private_folder("lockstep-", "control")?;
        let listener = UnixListener::bind(&socket)?;
        let connections = ranks.clone().map(|_| watch::Sender::new(Connection::NotYet)).collect();
        let state = Mutex::new(State { folder: Some(folder), ..State::default() });
        let shared = Arc::new(Shared { state, ranks, store_location, connections, messages });
        let accepting = tokio::spawn(accept(listener, Arc::clone(&shared))).abort_handle();
        Ok(Self { shared, socket, accepting })
    }

    /// Returns the path of the socket that ranks connect to.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Asks all ranks to save a checkpoint and exit, including those that connect later.
    pub fn stop(&self, reason: &str) {
        let mut state = self.shared.state();
        state.stop = Some(reason.to_owned());
        for rank in state.ranks.values() {
            // A rank that is gone need not be asked.
            let _ = rank.send(ToTrainer::Stop { reason: reason.to_owned() });
        }
    }

    /// Returns access to the values that ranks publish for each other.
    pub fn store(&self) -> KeyValueStore {
        KeyValueStore(Arc::clone(&self.shared))
    }

    /// Returns a future that is ready once all messages of `rank`, whose process has ended, have been
    /// received. It is never ready if the rank never connected.
    pub fn drained(&self, rank: usize) -> impl Future<Output = ()> + Send + use<> {
        let mut connection = self.shared.connection(rank).subscribe();
        async move {
            // Fails only if the sender is gone with the control server; then there is nothing to wait for.
            let _ = connection.wait_for(|state| *state == Connection::Closed).await;
        }
    }
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        self.accepting.abort();
        self.shared.state().folder = None;
    }
}

async fn accept(listener: UnixListener, shared: Arc<Shared>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(serve(stream, Arc::clone(&shared)));
            }
            Err(error) => {
                tracing::warn!("cannot accept a control connection: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve(stream: UnixStream, shared: Arc<Shared>) {
    let (mut reader, mut writer) = stream.into_split();
    let hello = match tokio::time::timeout(HELLO_TIMEOUT, read_message(&mut reader)).await {
        Ok(Ok(Some(hello))) => hello,
        _ => return tracing::warn!("a process connected but did not identify its rank"),
    };
    let (sender, mut outgoing) = mpsc::unbounded_channel();
    let rank = match shared.welcome(&hello, sender) {
        Ok(rank) => rank,
        Err(reason) => return tracing::warn!("control connection refused: {reason}"),
    };
    let writing = tokio::spawn(async move {
        while let Some(message) = outgoing.recv().await {
            let Ok(frame) = control::encode(&message) else { continue };
            if writer.write_all(&frame).await.is_err() {
                break;
            }
        }
    });
    loop {
        match read_message(&mut reader).await {
            Ok(Some(message)) => shared.take(rank, message),
            Ok(None) => break,
            Err(error) => {
                tracing::warn!("control connection of rank {rank} failed: {error}");
                break;
            }
        }
    }
    shared.state().ranks.remove(&rank);
    writing.abort();
    shared.connection(rank).send_replace(Connection::Closed);
}

async fn read_message(reader: &mut OwnedReadHalf) -> io::Result<Option<ToLauncher>> {
    match read_body(reader).await {
        // A process that exits with unread data resets its connection.
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(None),
        body => body?.map(|body| control::decode(&body)).transpose(),
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connection(&self, rank: usize) -> &watch::Sender<Connection> {
        &self.connections[rank - self.ranks.start]
    }

    /// Checks the first message on a connection and registers `sender` for its rank. Returns the rank, or why
    /// it is refused.
    fn welcome(
        &self,
        hello: &ToLauncher,
        sender: UnboundedSender<ToTrainer>,
    ) -> Result<usize, String> {
        let ToLauncher::Hello { protocol, rank, pid, version } = hello else {
            return Err("the first message was not a hello".to_owned());
        };
        if !self.ranks.contains(rank) {
            return Err(format!(
                "process {pid} claims to be rank {rank}, which is not on this node"
            ));
        }
        if (*protocol, version.as_str()) != (PROTOCOL, VERSION) {
            let reason = format!(
                "the trainer is version {version} (protocol {protocol}), the launcher {VERSION} \
                 (protocol {PROTOCOL}); build both from the same source"
            );
            self.send(Message::Refused { rank: *rank, reason: reason.clone() });
            return Err(reason);
        }
        let mut state = self.state();
        if state.ranks.contains_key(rank) {
            return Err(format!(
                "process {pid} claims to be rank {rank}, which is connected already"
            ));
        }
        if let Some(reason) = &state.stop {
            // The receiver is alive: the caller holds it.
            let _ = sender.send(ToTrainer::Stop { reason: reason.clone() });
        }
        state.ranks.insert(*rank, sender);
        self.connection(*rank).send_replace(Connection::Open);
        if state.ranks.len() == self.connections.len() {
            state.folder = None;
        }
        Ok(*rank)
    }

    fn take(&self, rank: usize, message: ToLauncher) {
        match message {
            ToLauncher::Put { key, value } if self.store_location == StoreLocation::Local => {
                self.state().put(key, value);
            }
            ToLauncher::Get { key } => {
                let is_known = self.state().get(Asker::Rank(rank), key.clone());
                if !is_known && self.store_location == StoreLocation::Node0 {
                    self.send(Message::Said { rank, message: ToLauncher::Get { key } });
                }
            }
            message => self.send(Message::Said { rank, message }),
        }
    }

    fn send(&self, message: Message) {
        // The receiver is gone when the attempt is over.
        let _ = self.messages.send(message);
    }
}

impl State {
    /// Publishes a value and sends it to those that wait for it. The first value of a key stays, since ranks
    /// may have acted on it.
    fn put(&mut self, key: String, value: String) {
        for asker in self.waiting.remove(&key).unwrap_or_default() {
            self.answer(&asker, &key, &value);
        }
        self.values.entry(key).or_insert(value);
    }

    /// Sends the value of `key` to `asker`, now or once it is published. Returns whether it was there
    /// already.
    fn get(&mut self, asker: Asker, key: String) -> bool {
        match self.values.get(&key).cloned() {
            Some(value) => {
                self.answer(&asker, &key, &value);
                true
            }
            None => {
                self.waiting.entry(key).or_default().push(asker);
                false
            }
        }
    }

    /// Sends a value to `asker`, unless it is gone.
    fn answer(&self, asker: &Asker, key: &str, value: &str) {
        let (key, value) = (key.to_owned(), value.to_owned());
        match asker {
            Asker::Rank(rank) => {
                if let Some(sender) = self.ranks.get(rank) {
                    let _ = sender.send(ToTrainer::Value { key, value });
                }
            }
            Asker::Node(sender) => _ = sender.send(ToMember::Value { key, value }),
        }
    }
}

#[cfg(test)]
mod tests;
