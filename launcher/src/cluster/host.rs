//! Node 0's end: lets the other launchers join, and talks to them.
//!
//! The port is listened at only while a node is missing. A connection that has not proved that it knows
//! the token within [`HANDSHAKE_TIMEOUT`] is closed, and only so many may try at a time, so strangers
//! cost neither memory nor time.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use comm::control::ToLauncher;
use job::ExitCode;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use super::address::{Interface, Rendezvous, interface_of};
use super::agree::{agree, name};
use super::connection::Connection;
use super::handshake::{self, HandshakeError, Seals};
use super::message::{Introduction, News, ToCoordinator, ToMember};
use super::token::Token;
use crate::coordinator::Board;
use crate::error::LaunchError;
use crate::local::LogTail;
use crate::plan::Layout;

/// Within this time a connection must have proved who it is and said what it wants.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Connections that may be at it at a time; more are closed at once.
const MAX_STRANGERS: usize = 64;

/// Refused connections that are told of one by one.
const REFUSALS_SHOWN: usize = 5;

/// What the ranks of other nodes and their launchers may take to report after the last rank's end.
const REPORT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the others' goodbye is waited for.
pub(super) const FAREWELL: Duration = Duration::from_secs(2);

/// From another node.
#[derive(Debug)]
pub enum FromNode {
    /// About one of its ranks.
    News(News),
    /// Its launcher was asked to stop.
    StopAsked(String),
    /// It has said all that there is to say of this attempt.
    Reported,
    /// Its launcher is gone.
    Lost {
        /// Its ranks.
        ranks: Range<usize>,
        /// Which node, and what was seen.
        reason: String,
    },
}

struct Member {
    introduction: Introduction,
    address: IpAddr,
    /// How far its clock is ahead of this one.
    skew_seconds: f64,
    connection: Connection<ToMember>,
    lost: bool,
    reported: bool,
}

/// The other nodes' launchers.
pub struct Host {
    me: Introduction,
    token: Token,
    rendezvous: Rendezvous,
    listener: Option<TcpListener>,
    join_timeout: Duration,
    members: BTreeMap<usize, Member>,
    incoming: UnboundedReceiver<(usize, SocketAddr, Result<ToCoordinator, String>)>,
    sender: UnboundedSender<(usize, SocketAddr, Result<ToCoordinator, String>)>,
    addresses: BTreeMap<usize, SocketAddr>,
    interface: Option<Interface>,
    logs: BTreeMap<usize, LogTail>,
}

struct Joined {
    stream: TcpStream,
    seals: Seals,
    introduction: Introduction,
    from: SocketAddr,
}

impl Host {
    /// For a job of which this node says `me`; `listener` is where the others will look.
    pub fn new(
        me: Introduction,
        token: Token,
        rendezvous: Rendezvous,
        listener: TcpListener,
        join_timeout: Duration,
    ) -> Self {
        let (sender, incoming) = mpsc::unbounded_channel();
        Self {
            me,
            token,
            rendezvous,
            listener: Some(listener),
            join_timeout,
            members: BTreeMap::new(),
            incoming,
            sender,
            addresses: BTreeMap::new(),
            interface: None,
            logs: BTreeMap::new(),
        }
    }

    /// Waits until every node is there, those that were lost again.
    ///
    /// # Errors
    /// [`LaunchError::Cluster`] when one does not come in time or does not fit; those that are there are
    /// told.
    pub async fn gather(&mut self) -> Result<(), LaunchError> {
        self.members.retain(|_, member| !member.lost);
        let gathered = self.gather_all().await;
        match &gathered {
            Ok(()) => self.listener = None,
            Err(error) => self.finish(error.exit_code(), &error.to_string()).await,
        }
        gathered
    }

    async fn gather_all(&mut self) -> Result<(), LaunchError> {
        let deadline = Instant::now() + self.join_timeout;
        let listener = match self.listener.take() {
            Some(listener) => listener,
            None => {
                self.rendezvous.listen().await.map_err(LaunchError::cluster(ExitCode::Setup))?
            }
        };
        let mut strangers = JoinSet::new();
        let mut refused = Vec::new();
        while self.members.len() + 1 < self.me.nodes {
            tokio::select! {
                () = sleep_until(deadline) => return Err(self.missing(&refused)),
                accepted = listener.accept() => match accepted {
                    Ok((stream, from)) if strangers.len() < MAX_STRANGERS => {
                        let token = self.token.clone();
                        strangers.spawn(async move { (from, greet(stream, from, &token).await) });
                    }
                    Ok(_) => {}
                    Err(error) => {
                        tracing::warn!("cannot accept a connection: {error}");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                },
                Some(Ok((from, greeted))) = strangers.join_next() => match greeted {
                    Ok(joined) => self.add(joined).await?,
                    Err(error) => {
                        let text = format!("a connection from {from} was refused: {error}");
                        if refused.len() < REFUSALS_SHOWN {
                            tracing::warn!("{text}");
                        }
                        refused.push(text);
                    }
                },
                Some((node, from, message)) = self.incoming.recv() => {
                    if message.is_err() && self.addresses.get(&node) == Some(&from) {
                        self.members.remove(&node);
                    }
                }
            }
        }
        Ok(())
    }

    async fn add(&mut self, joined: Joined) -> Result<(), LaunchError> {
        let Joined { stream, seals, introduction, from } = joined;
        let node = introduction.node_rank;
        let taken = self.members.get(&node).map(|member| name(&member.introduction));
        self.interface = self.interface.take().or_else(|| {
            let address = stream.local_addr().ok()?.ip();
            interface_of(address)
        });
        let incoming = self.sender.clone();
        let connection = Connection::start(stream, seals, ToMember::Alive, move |message| {
            // Nobody listens any more when the job is over.
            let _ = incoming.send((node, from, message));
        });
        let mismatch = match (agree(&self.me, &introduction), taken) {
            (Err(mismatch), _) => Some((mismatch.exit_code, mismatch.text)),
            (Ok(()), Some(taken)) => {
                let text = format!("{taken} and {} have the same --node-rank", name(&introduction));
                Some((ExitCode::Usage, text))
            }
            (Ok(()), None) => None,
        };
        if let Some((exit_code, text)) = mismatch {
            let finish = ToMember::Finish { exit_code: exit_code as u8, text: text.clone() };
            connection.send(finish);
            connection.close().await;
            return Err(LaunchError::Cluster { exit_code, text });
        }
        tracing::info!("{} has joined: {} ranks", name(&introduction), introduction.ranks);
        let address = from.ip();
        let skew_seconds = introduction.unix_seconds - super::unix_seconds();
        self.addresses.insert(node, from);
        let member =
            Member { introduction, address, skew_seconds, connection, lost: false, reported: true };
        self.members.insert(node, member);
        Ok(())
    }

    fn missing(&self, refused: &[String]) -> LaunchError {
        let absent: Vec<_> = (1..self.me.nodes)
            .filter(|node| !self.members.contains_key(node))
            .map(|node| node.to_string())
            .collect();
        let there: Vec<_> = std::iter::once(name(&self.me))
            .chain(self.members.values().map(|member| name(&member.introduction)))
            .collect();
        let refusals = match refused.last() {
            None => String::new(),
            Some(last) => format!("; {} connections were refused, the last: {last}", refused.len()),
        };
        let text = format!(
            "node {} did not join within {:?} at {}; there: {}{refusals}",
            absent.join(", "),
            self.join_timeout,
            self.rendezvous,
            there.join(", "),
        );
        LaunchError::Cluster { exit_code: ExitCode::Hang, text }
    }

    /// Ranks of each node; to be called when all are there.
    pub fn layout(&self) -> Layout {
        let others = self.members.values().map(|member| member.introduction.ranks);
        let ranks_per_node = std::iter::once(self.me.ranks).chain(others).collect();
        Layout { node_rank: 0, ranks_per_node }
    }

    /// Each node's name for itself.
    pub fn hosts(&self) -> Vec<String> {
        let others = self.members.values().map(|member| member.introduction.host.clone());
        std::iter::once(self.me.host.clone()).chain(others).collect()
    }

    /// Each other node's name, and by how many seconds its clock is ahead of this one.
    pub fn skews(&self) -> Vec<(String, f64)> {
        let skew = |member: &Member| (name(&member.introduction), member.skew_seconds);
        self.members.values().map(skew).collect()
    }

    /// The interface over which the others were reached.
    pub fn interface(&self) -> Option<&Interface> {
        self.interface.as_ref()
    }

    /// Whether a node's launcher is gone.
    pub fn has_lost(&self) -> bool {
        self.members.values().any(|member| member.lost)
    }

    /// Tells all nodes of the job.
    pub fn welcome(&self, run_dir: PathBuf, config: String) {
        let (layout, hosts) = (self.layout().ranks_per_node, self.hosts());
        self.broadcast(&ToMember::Welcome { layout, hosts, run_dir, config });
    }

    /// Starts the ranks of all other nodes.
    pub fn start(&mut self, resume: String) {
        self.logs.clear();
        self.members.values_mut().for_each(|member| member.reported = false);
        self.broadcast(&ToMember::Start { resume });
    }

    /// Sends to all nodes.
    pub fn broadcast(&self, message: &ToMember) {
        self.members.values().for_each(|member| member.connection.send(message.clone()));
    }

    /// Has the node that calls itself `host` run a daemon of MPI.
    ///
    /// # Errors
    /// A sentence when there is no such node.
    pub fn start_daemon(&self, host: &str, command: String) -> Result<(), String> {
        let short = |name: &str| name.split('.').next().map(str::to_owned);
        let member = self.members.values().find(|member| {
            let own = &member.introduction.host;
            own == host || short(own) == short(host) || member.address.to_string() == host
        });
        let member =
            member.ok_or_else(|| format!("mpirun wants a daemon on {host}, which is no node"))?;
        member.connection.send(ToMember::Daemon { command });
        Ok(())
    }

    /// What happens next on another node; values that its ranks leave or ask for go to `board`. May be
    /// dropped and called again.
    pub async fn next(&mut self, board: &Board) -> FromNode {
        loop {
            let Some((node, from, message)) = self.incoming.recv().await else {
                return std::future::pending().await;
            };
            if self.addresses.get(&node) != Some(&from) {
                continue;
            }
            let ranks = self.layout().ranks_of(node);
            let Some(member) = self.members.get_mut(&node).filter(|member| !member.lost) else {
                continue;
            };
            let name = name(&member.introduction);
            match message {
                Err(reason) => {
                    member.lost = true;
                    return FromNode::Lost { ranks, reason: format!("{name} is lost: {reason}") };
                }
                Ok(ToCoordinator::News(news)) if !ranks.contains(&news.rank()) => {
                    tracing::warn!("{name} speaks of rank {}, which it does not have", news.rank());
                }
                Ok(ToCoordinator::News(News::Said {
                    message: ToLauncher::Put { key, value },
                    ..
                })) => {
                    board.put(key, value);
                }
                Ok(ToCoordinator::News(News::Said {
                    message: ToLauncher::Get { key }, ..
                })) => {
                    board.get_for(member.connection.sender(), key);
                }
                Ok(ToCoordinator::News(news)) => return FromNode::News(news),
                Ok(ToCoordinator::Signal(signal)) => {
                    return FromNode::StopAsked(format!("{signal} on {name}"));
                }
                Ok(ToCoordinator::Log { rank, path, tail }) => {
                    self.logs.insert(rank, (path, tail));
                }
                Ok(ToCoordinator::AttemptEnded) => {
                    member.reported = true;
                    return FromNode::Reported;
                }
                Ok(ToCoordinator::Join(_) | ToCoordinator::Alive) => {}
            }
        }
    }

    /// The ends of the other nodes' logs, by rank; to be called when all ranks have ended. A node that
    /// does not report is lost.
    pub async fn end_attempt(&mut self, board: &Board) -> BTreeMap<usize, LogTail> {
        let deadline = Instant::now() + REPORT_TIMEOUT;
        while self.members.values().any(|member| !member.lost && !member.reported) {
            if timeout_at(deadline, self.next(board)).await.is_err() {
                let late = self.members.values_mut().filter(|member| !member.reported);
                late.for_each(|member| member.lost = true);
            }
        }
        std::mem::take(&mut self.logs)
    }

    /// Tells all nodes how the job has ended.
    pub async fn finish(&mut self, exit_code: ExitCode, text: &str) {
        self.broadcast(&ToMember::Finish { exit_code: exit_code as u8, text: text.to_owned() });
        // All end at the same moment: where one task of a step ends badly, Slurm kills the others, whose
        // exit code would then be another.
        let deadline = Instant::now() + FAREWELL;
        while self.members.values().any(|member| !member.lost) {
            match timeout_at(deadline, self.incoming.recv()).await {
                Ok(Some((node, from, Err(_)))) if self.addresses.get(&node) == Some(&from) => {
                    self.members.entry(node).and_modify(|member| member.lost = true);
                }
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => break,
            }
        }
        for (_, member) in std::mem::take(&mut self.members) {
            member.connection.close().await;
        }
    }
}

async fn greet(
    mut stream: TcpStream,
    from: SocketAddr,
    token: &Token,
) -> Result<Joined, HandshakeError> {
    let greeting = async {
        stream.set_nodelay(true)?;
        let mut seals = handshake::accept(&mut stream, token).await?;
        match seals.receiving.read(&mut stream).await? {
            ToCoordinator::Join(introduction) => Ok((seals, *introduction)),
            _ => Err(HandshakeError::NotALauncher),
        }
    };
    match timeout(HANDSHAKE_TIMEOUT, greeting).await {
        Ok(greeted) => {
            let (seals, introduction) = greeted?;
            Ok(Joined { stream, seals, introduction, from })
        }
        Err(_) => Err(HandshakeError::Silent(HANDSHAKE_TIMEOUT)),
    }
}
