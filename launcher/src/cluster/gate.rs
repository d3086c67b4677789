//! The port at which node 0 accepts the other launchers.
//!
//! Node 0 listens only while a node is missing. A connection that has not proved within [`HANDSHAKE_TIMEOUT`]
//! that it knows the token is closed. At most [`MAX_PENDING`] connections may be in the handshake at a
//! time: for a further one, the oldest of the address that has most of them is closed. So strangers cost a
//! bounded amount of memory and time, and keep no launcher out, however many connect.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;

use super::address::Rendezvous;
use super::handshake::{self, HandshakeError, Seals};
use super::message::{Introduction, ToLeader, Unable};
use super::token::{TemporaryTokenFile, Token};

/// Time within which a connection must have proved that it knows the token, and sent its first message.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Maximum number of connections in the handshake at a time; for a further one, an older one is closed.
const MAX_PENDING: usize = 64;

/// Number of refused connections that are warned about one by one; further ones are only counted.
const REFUSALS_SHOWN: usize = 5;

/// Back-off after the operating system has failed to accept a connection.
const ACCEPT_BACK_OFF: Duration = Duration::from_millis(10);

/// The connection of a launcher that has proved that it knows the token.
pub struct AuthenticatedPeer {
    /// The TCP connection.
    pub stream: TcpStream,
    /// What authenticates frames in its two directions.
    pub seals: Seals,
    /// Address of the launcher.
    pub from: SocketAddr,
    /// The launcher's first message.
    pub first_message: FirstMessage,
}

/// The first message of a launcher after the handshake.
pub enum FirstMessage {
    /// It wants to join.
    Join(Box<Introduction>),
    /// It cannot take part.
    Decline(Unable),
}

/// Accepts connections of launchers. Dropping this removes the token's file, if it was made for the job.
pub struct Gate {
    rendezvous: Rendezvous,
    token: Token,
    _token_file: Option<TemporaryTokenFile>,
    listener: Option<TcpListener>,
    handshakes: JoinSet<(SocketAddr, Result<AuthenticatedPeer, HandshakeError>)>,
    /// Connections in the handshake, the oldest first: their addresses and tasks.
    pending: VecDeque<(IpAddr, AbortHandle)>,
    refusals: Refusals,
}

/// Connections that were refused since the gate was last opened.
#[derive(Default)]
struct Refusals {
    count: usize,
    last: String,
}

impl Refusals {
    fn note(&mut self, text: String) {
        if self.count < REFUSALS_SHOWN {
            tracing::warn!("{text}");
        }
        self.count += 1;
        self.last = text;
    }
}

impl Gate {
    /// Creates a gate that accepts connections of `listener`, which listens at `rendezvous`. `made` is the
    /// token's file, if it was made for the job.
    pub fn new(
        rendezvous: Rendezvous,
        token: Token,
        token_file: Option<TemporaryTokenFile>,
        listener: TcpListener,
    ) -> Self {
        Self {
            rendezvous,
            token,
            _token_file: token_file,
            listener: Some(listener),
            handshakes: JoinSet::new(),
            pending: VecDeque::new(),
            refusals: Refusals::default(),
        }
    }

    /// Returns the rendezvous of the job.
    pub const fn rendezvous(&self) -> &Rendezvous {
        &self.rendezvous
    }

    /// Returns the address that the gate listens at; empty while it is closed.
    pub fn address(&self) -> String {
        let address = self.listener.as_ref().and_then(|listener| listener.local_addr().ok());
        address.map_or_else(String::new, |address| address.to_string())
    }

    /// Starts to listen, unless it does already, and forgets earlier refusals.
    ///
    /// # Errors
    /// A sentence that names the address and says why it cannot be bound.
    pub async fn open(&mut self) -> Result<(), String> {
        if self.listener.is_none() {
            self.listener = Some(self.rendezvous.listen().await?);
        }
        self.refusals = Refusals::default();
        Ok(())
    }

    /// Stops listening, and disconnects those that are still in the handshake before it returns.
    pub async fn close(&mut self) {
        self.listener = None;
        self.handshakes.shutdown().await;
        self.pending.clear();
    }

    /// Waits for the next launcher that knows the token, forever while the gate is closed. Cancel safe.
    pub async fn next(&mut self) -> AuthenticatedPeer {
        let Some(listener) = &self.listener else { return std::future::pending().await };
        loop {
            tokio::select! {
                // A connection that is closed to make room keeps its file descriptor until its task has
                // ended, so it is the tasks that are counted.
                accepted = listener.accept(), if self.handshakes.len() <= MAX_PENDING => match accepted {
                    Ok((stream, from)) => {
                        // A listener of both families reports IPv4 addresses as mapped ones.
                        let from = SocketAddr::new(from.ip().to_canonical(), from.port());
                        if self.pending.len() >= MAX_PENDING {
                            make_room(&mut self.pending);
                        }
                        let token = self.token.clone();
                        let handshake =
                            self.handshakes.spawn(async move { (from, shake_hands(stream, from, &token).await) });
                        self.pending.push_back((from.ip(), handshake));
                    }
                    // Most likely there are no more file descriptors.
                    Err(error) => {
                        self.refusals.note(format!("cannot accept a connection: {error}"));
                        make_room(&mut self.pending);
                        tokio::time::sleep(ACCEPT_BACK_OFF).await;
                    }
                },
                Some(ended) = self.handshakes.join_next() => {
                    self.pending.retain(|(_, handshake)| !handshake.is_finished());
                    match ended {
                        Ok((_, Ok(peer))) => return peer,
                        // The launcher will connect again.
                        Ok((from, Err(HandshakeError::GaveUp))) => {
                            tracing::debug!("a connection from {from} gave up waiting");
                        }
                        Ok((from, Err(error))) => self
                            .refusals
                            .note(format!("a connection from {from} was refused: {error}")),
                        Err(_) => {
                            let text = "a connection was closed to make room: too many in \
                                        the handshake";
                            self.refusals.note(text.to_owned());
                        }
                    }
                }
            }
        }
    }

    /// Returns how many connections were refused, and why the last one was, to be appended to a sentence;
    /// empty if none was.
    pub fn refusals(&self) -> String {
        match self.refusals.count {
            0 => String::new(),
            1 => format!("; {}", self.refusals.last),
            n => format!("; {n} refusals, the last: {}", self.refusals.last),
        }
    }
}

/// Closes the oldest connection in the handshake of the address that has most of them.
fn make_room(pending: &mut VecDeque<(IpAddr, AbortHandle)>) {
    let mut counts: HashMap<IpAddr, usize> = HashMap::new();
    for (address, _) in &*pending {
        *counts.entry(*address).or_default() += 1;
    }
    let most = counts.values().copied().max();
    let oldest = pending.iter().position(|(address, _)| counts.get(address).copied() == most);
    if let Some((_, handshake)) = oldest.and_then(|index| pending.remove(index)) {
        handshake.abort();
    }
}

async fn shake_hands(
    mut stream: TcpStream,
    from: SocketAddr,
    token: &Token,
) -> Result<AuthenticatedPeer, HandshakeError> {
    let handshake = async {
        stream.set_nodelay(true)?;
        let mut seals = handshake::accept(&mut stream, token).await?;
        let first_message = match seals.receiving.read(&mut stream).await? {
            ToLeader::Join(introduction) => FirstMessage::Join(introduction),
            ToLeader::Decline(unable) => FirstMessage::Decline(unable),
            _ => return Err(HandshakeError::NotALauncher),
        };
        Ok((seals, first_message))
    };
    match timeout(HANDSHAKE_TIMEOUT, handshake).await {
        Ok(ended) => {
            let (seals, first_message) = ended?;
            Ok(AuthenticatedPeer { stream, seals, from, first_message })
        }
        Err(_) => Err(HandshakeError::Silent(HANDSHAKE_TIMEOUT)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_oldest_of_the_address_with_most_connections_makes_room() {
        let mut tasks = JoinSet::new();
        let mut pending = VecDeque::new();
        let (crowd, lonely) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let mut come = |address| (address, tasks.spawn(std::future::pending::<()>()));
        pending.push_back(come(lonely));
        pending.extend((1..MAX_PENDING).map(|_| come(crowd)));
        let oldest = pending[1].1.clone();
        make_room(&mut pending);
        assert_eq!((pending.len(), pending[0].0), (MAX_PENDING - 1, lonely));
        assert!(tasks.join_next().await.unwrap().unwrap_err().is_cancelled());
        assert!(oldest.is_finished());
    }
}
