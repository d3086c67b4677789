//! A connection between two launchers after the handshake: messages both ways, and heartbeats while there are
//! none. An end from which nothing arrives for [`PEER_TIMEOUT`] counts as lost, whatever TCP reports.

use std::io;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::handshake::{Seal, Seals};

/// Time without a message after which a heartbeat is sent.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);

/// Time without a message after which the other end counts as lost.
pub const PEER_TIMEOUT: Duration = Duration::from_secs(15);

/// How long [`Connection::close`] waits until queued messages have been sent.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// The sending half of a connection. Queued messages have been sent when [`close`](Self::close) returns,
/// unless that timed out.
#[derive(Debug)]
pub struct Connection<Out> {
    sender: UnboundedSender<Out>,
    writer: JoinHandle<()>,
}

impl<Out: Clone + Serialize + Send + Sync + 'static> Connection<Out> {
    /// Starts to send and receive over `stream`; `alive` is the heartbeat to send. `take` gets every message
    /// that is received, and at last the reason why there are no more.
    pub fn start<In: DeserializeOwned + Send>(
        stream: TcpStream,
        seals: Seals,
        heartbeat: Out,
        mut take: impl FnMut(Result<In, String>) + Send + 'static,
    ) -> Self {
        let (reader, writer) = stream.into_split();
        let (sender, outgoing) = mpsc::unbounded_channel();
        let writer = tokio::spawn(write(writer, seals.sending, outgoing, heartbeat));
        tokio::spawn(async move {
            let reason = read(reader, seals.receiving, |message| take(Ok(message))).await;
            take(Err(reason));
        });
        Self { sender, writer }
    }

    /// Queues a message, which is sent if the other end is still there.
    pub fn send(&self, message: Out) {
        // If the other end is gone, the receiving half reports that.
        let _ = self.sender.send(message);
    }

    /// Returns a sender with which others can queue messages.
    pub fn sender(&self) -> UnboundedSender<Out> {
        self.sender.clone()
    }

    /// Sends queued messages, for at most [`FLUSH_TIMEOUT`], and closes the sending half.
    pub async fn close(self) {
        let Self { sender, mut writer } = self;
        drop(sender);
        if timeout(FLUSH_TIMEOUT, &mut writer).await.is_err() {
            writer.abort();
        }
    }
}

async fn write<Out: Clone + Serialize>(
    mut stream: OwnedWriteHalf,
    mut seal: Seal,
    mut outgoing: UnboundedReceiver<Out>,
    heartbeat: Out,
) {
    loop {
        let message = match timeout(HEARTBEAT_INTERVAL, outgoing.recv()).await {
            Ok(Some(message)) => message,
            Ok(None) => break,
            Err(_) => heartbeat.clone(),
        };
        let frame = match seal.seal(&message) {
            Ok(frame) => frame,
            Err(error) => {
                tracing::warn!("a message to another node was dropped: {error}");
                continue;
            }
        };
        if stream.write_all(&frame).await.is_err() {
            break;
        }
    }
    let _ = stream.shutdown().await;
}

async fn read<In: DeserializeOwned>(
    mut stream: OwnedReadHalf,
    mut seal: Seal,
    mut take: impl FnMut(In),
) -> String {
    loop {
        match timeout(PEER_TIMEOUT, seal.read(&mut stream)).await {
            Ok(Ok(message)) => take(message),
            Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return "it closed the connection".to_owned();
            }
            Ok(Err(error)) => return error.to_string(),
            Err(_) => return format!("it sent nothing for {PEER_TIMEOUT:?}"),
        }
    }
}
