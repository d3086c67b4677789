//! The port at which node 0 lets others in.
//!
//! It is listened at only while a node is missing. A connection that has not proved that it knows the
//! token within [`HANDSHAKE_TIMEOUT`] is closed, and only so many may try at a time: the one that has
//! tried longest makes room, of the address that has most of them. So strangers cost neither memory nor
//! time, and do not keep others out, however many come.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;

use super::address::Rendezvous;
use super::handshake::{self, HandshakeError, Seals};
use super::message::{Introduction, ToCoordinator, Unable};
use super::token::{Made, Token};

/// Within this time a connection must have proved who it is and said what it wants.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Connections that may be at it at a time.
const MAX_STRANGERS: usize = 64;

/// Refused connections that are told of one by one.
const REFUSALS_SHOWN: usize = 5;

/// After the operating system has refused a connection.
const ACCEPT_AGAIN: Duration = Duration::from_millis(10);

/// A launcher that knows the token.
pub struct Guest {
    /// The connection.
    pub stream: TcpStream,
    /// Its two directions.
    pub seals: Seals,
    /// Where it comes from.
    pub from: SocketAddr,
    /// What it wants.
    pub wish: Wish,
}

/// What a launcher says first.
pub enum Wish {
    /// It wants to join.
    Join(Box<Introduction>),
    /// It cannot take part.
    Decline(Unable),
}

/// Lets launchers in. The token's file, where it was made for the job, is removed when this is dropped.
pub struct Gate {
    rendezvous: Rendezvous,
    token: Token,
    _made: Option<Made>,
    listener: Option<TcpListener>,
    greetings: JoinSet<(SocketAddr, Result<Guest, HandshakeError>)>,
    /// Those who are being greeted, in the order in which they came.
    strangers: VecDeque<(IpAddr, AbortHandle)>,
    refusals: Refusals,
}

/// Connections that were not let in.
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
    /// At `listener`, which is where `rendezvous` says. `made`: the token's file.
    pub fn new(
        rendezvous: Rendezvous,
        token: Token,
        made: Option<Made>,
        listener: TcpListener,
    ) -> Self {
        Self {
            rendezvous,
            token,
            _made: made,
            listener: Some(listener),
            greetings: JoinSet::new(),
            strangers: VecDeque::new(),
            refusals: Refusals::default(),
        }
    }

    /// Where it is.
    pub const fn rendezvous(&self) -> &Rendezvous {
        &self.rendezvous
    }

    /// Where it listens; empty where it does not.
    pub fn address(&self) -> String {
        let address = self.listener.as_ref().and_then(|listener| listener.local_addr().ok());
        address.map_or_else(String::new, |address| address.to_string())
    }

    /// Listens, unless it does already.
    ///
    /// # Errors
    /// A sentence that names the address and why it cannot be had.
    pub async fn open(&mut self) -> Result<(), String> {
        if self.listener.is_none() {
            self.listener = Some(self.rendezvous.listen().await?);
        }
        self.refusals = Refusals::default();
        Ok(())
    }

    /// Listens no more; who has not said what it wants is disconnected when this returns.
    pub async fn close(&mut self) {
        self.listener = None;
        self.greetings.shutdown().await;
        self.strangers.clear();
    }

    /// The next launcher that knows the token; never one where the gate is closed. May be dropped and
    /// called again.
    pub async fn next(&mut self) -> Guest {
        let Some(listener) = &self.listener else { return std::future::pending().await };
        loop {
            tokio::select! {
                // One that is made to leave still has its descriptor until its greeting has ended.
                accepted = listener.accept(), if self.greetings.len() <= MAX_STRANGERS => match accepted {
                    Ok((stream, from)) => {
                        // Of IPv4, also where the listener is of both families.
                        let from = SocketAddr::new(from.ip().to_canonical(), from.port());
                        if self.strangers.len() >= MAX_STRANGERS {
                            make_room(&mut self.strangers);
                        }
                        let token = self.token.clone();
                        let greeting =
                            self.greetings.spawn(async move { (from, greet(stream, from, &token).await) });
                        self.strangers.push_back((from.ip(), greeting));
                    }
                    // Most likely there are no more file descriptors.
                    Err(error) => {
                        self.refusals.note(format!("cannot accept a connection: {error}"));
                        make_room(&mut self.strangers);
                        tokio::time::sleep(ACCEPT_AGAIN).await;
                    }
                },
                Some(greeted) = self.greetings.join_next() => {
                    self.strangers.retain(|(_, greeting)| !greeting.is_finished());
                    match greeted {
                        Ok((_, Ok(guest))) => return guest,
                        // It will come again.
                        Ok((from, Err(HandshakeError::GaveUp))) => {
                            tracing::debug!("a connection from {from} gave up waiting");
                        }
                        Ok((from, Err(error))) => self
                            .refusals
                            .note(format!("a connection from {from} was refused: {error}")),
                        Err(_) => {
                            let text = "a connection was closed to make room: too many do not say who they are";
                            self.refusals.note(text.to_owned());
                        }
                    }
                }
            }
        }
    }

    /// How many were refused, and why the last one: to be appended to a sentence.
    pub fn refusals(&self) -> String {
        match self.refusals.count {
            0 => String::new(),
            1 => format!("; {}", self.refusals.last),
            n => format!("; {n} connections were refused, the last: {}", self.refusals.last),
        }
    }
}

/// Ends the oldest greeting of the address that has most of them.
fn make_room(strangers: &mut VecDeque<(IpAddr, AbortHandle)>) {
    let mut counts: HashMap<IpAddr, usize> = HashMap::new();
    for (address, _) in &*strangers {
        *counts.entry(*address).or_default() += 1;
    }
    let most = counts.values().copied().max();
    let oldest = strangers.iter().position(|(address, _)| counts.get(address).copied() == most);
    if let Some((_, greeting)) = oldest.and_then(|index| strangers.remove(index)) {
        greeting.abort();
    }
}

async fn greet(
    mut stream: TcpStream,
    from: SocketAddr,
    token: &Token,
) -> Result<Guest, HandshakeError> {
    let greeting = async {
        stream.set_nodelay(true)?;
        let mut seals = handshake::accept(&mut stream, token).await?;
        let wish = match seals.receiving.read(&mut stream).await? {
            ToCoordinator::Join(introduction) => Wish::Join(introduction),
            ToCoordinator::Decline(unable) => Wish::Decline(unable),
            _ => return Err(HandshakeError::NotALauncher),
        };
        Ok((seals, wish))
    };
    match timeout(HANDSHAKE_TIMEOUT, greeting).await {
        Ok(greeted) => {
            let (seals, wish) = greeted?;
            Ok(Guest { stream, seals, from, wish })
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
        let mut strangers = VecDeque::new();
        let (crowd, lonely) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let mut come = |address| (address, tasks.spawn(std::future::pending::<()>()));
        strangers.push_back(come(lonely));
        strangers.extend((1..MAX_STRANGERS).map(|_| come(crowd)));
        let oldest = strangers[1].1.clone();
        make_room(&mut strangers);
        assert_eq!((strangers.len(), strangers[0].0), (MAX_STRANGERS - 1, lonely));
        assert!(tasks.join_next().await.unwrap().unwrap_err().is_cancelled());
        assert!(oldest.is_finished());
    }
}
