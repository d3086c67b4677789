//! Node 0's end of the connections between launchers: lets the others join, directs them, and receives what
//! they report.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use comm::control::ToLauncher;
use job::ExitCode;
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::time::{Instant, timeout_at};

use super::address::Interface;
use super::agree::name;
use super::connection::Connection;
use super::gate::Gate;
use super::message::{Introduction, RankEvent, ToLeader, ToMember, Unable};
use crate::control_server::KeyValueStore;
use crate::local::LogTail;
use crate::plan::Layout;

/// Time after the last rank's end within which the other nodes must have reported the ends of their logs;
/// those that have not count as lost.
const REPORT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long to wait, at the end of the job, until the other end has closed the connection.
pub(super) const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// An event of another node.
#[derive(Debug)]
pub enum FromNode {
    /// An event of one of its ranks.
    RankEvent(RankEvent),
    /// Its launcher was asked to stop: by which signal, and on which node.
    StopAsked(String),
    /// Its launcher was asked to stop again, by somebody who will not wait for a checkpoint.
    StopNow(String),
    /// It has sent all that there is to report of this attempt.
    Reported,
    /// It cannot start its ranks.
    Unable(Unable),
    /// The connection to its launcher is lost.
    Lost {
        /// Its ranks.
        ranks: Range<usize>,
        /// The node, and how the loss was noticed.
        reason: String,
    },
}

pub(super) struct RemoteNode {
    pub(super) introduction: Introduction,
    pub(super) address: IpAddr,
    /// Seconds by which its clock is ahead of this node's.
    pub(super) skew_seconds: f64,
    pub(super) connection: Connection<ToMember>,
    pub(super) lost: bool,
    pub(super) reported: bool,
}

pub(super) type Incoming = (usize, SocketAddr, Result<ToLeader, String>);

/// Node 0's connections to the launchers of the other nodes.
pub struct Leader {
    pub(super) me: Introduction,
    pub(super) gate: Gate,
    pub(super) join_timeout: Duration,
    pub(super) members: BTreeMap<usize, RemoteNode>,
    pub(super) incoming: UnboundedReceiver<Incoming>,
    pub(super) sender: UnboundedSender<Incoming>,
    pub(super) addresses: BTreeMap<usize, SocketAddr>,
    pub(super) interface: Option<Interface>,
    logs: BTreeMap<usize, LogTail>,
    /// Which signal asked the launcher of which node to stop after the last rank had ended, if one did.
    stop_asked: Option<String>,
}

impl Leader {
    /// Creates the leader of a job that no other node has joined yet. `me` is node 0's introduction; the others
    /// have `join_timeout` to join through `gate`.
    pub fn new(me: Introduction, gate: Gate, join_timeout: Duration) -> Self {
        let (sender, incoming) = mpsc::unbounded_channel();
        Self {
            me,
            gate,
            join_timeout,
            members: BTreeMap::new(),
            incoming,
            sender,
            addresses: BTreeMap::new(),
            interface: None,
            logs: BTreeMap::new(),
            stop_asked: None,
        }
    }

    /// Returns the number of ranks of each node. To be called when all nodes have joined.
    pub fn layout(&self) -> Layout {
        let others = self.members.values().map(|member| member.introduction.ranks);
        let ranks_per_node = std::iter::once(self.me.ranks).chain(others).collect();
        Layout { node_rank: 0, ranks_per_node }
    }

    /// Returns the host name of each node, as the node reports it.
    pub fn hosts(&self) -> Vec<String> {
        let others = self.members.values().map(|member| member.introduction.host.clone());
        std::iter::once(self.me.host.clone()).chain(others).collect()
    }

    /// Returns the name of each other node, and by how many seconds its clock is ahead of this node's.
    pub fn skews(&self) -> Vec<(String, f64)> {
        let skew = |member: &RemoteNode| (name(&member.introduction), member.skew_seconds);
        self.members.values().map(skew).collect()
    }

    /// Returns this node's network interface that the other nodes joined over; `None` for loopback.
    pub fn interface(&self) -> Option<&Interface> {
        self.interface.as_ref()
    }

    /// Returns whether the connection to a node is lost.
    pub fn has_lost(&self) -> bool {
        self.members.values().any(|member| member.lost)
    }

    /// Returns which signal asked the launcher of which other node to stop after the last rank had ended.
    pub fn stop_asked(&self) -> Option<&str> {
        self.stop_asked.as_deref()
    }

    /// Tells all other nodes that every node has joined, and about the job: `config` is a YAML document.
    pub fn welcome(&self, run_dir: PathBuf, config: String) {
        let (layout, hosts) = (self.layout().ranks_per_node, self.hosts());
        self.broadcast(&ToMember::Welcome { layout, hosts, run_dir, config });
    }

    /// Starts the ranks of all other nodes; `resume` is the value of the trainer's `--resume`.
    pub fn start(&mut self, resume: String) {
        self.logs.clear();
        self.members.values_mut().for_each(|member| member.reported = false);
        self.broadcast(&ToMember::Start { resume });
    }

    /// Sends a message to all other nodes.
    pub fn broadcast(&self, message: &ToMember) {
        self.members.values().for_each(|member| member.connection.send(message.clone()));
    }

    /// Makes the node that `mpirun` calls `host` run a daemon of MPI.
    ///
    /// # Errors
    /// A sentence when there is no such node.
    pub fn start_daemon(&self, host: &str, command: String) -> Result<(), String> {
        let short = |name: &str| name.split('.').next().map(str::to_owned);
        let member = self.members.values().find(|member| {
            let own = &member.introduction.host;
            own == host || short(own) == short(host) || member.address.to_string() == host
        });
        let member = member
            .ok_or_else(|| format!("mpirun asked for a daemon on {host}, which is not a node"))?;
        member.connection.send(ToMember::Daemon { command });
        Ok(())
    }

    /// Waits for the next event of another node and returns it. What its ranks put and get goes to `store`.
    /// Cancel safe.
    pub async fn next(&mut self, store: &KeyValueStore) -> FromNode {
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
                Ok(ToLeader::RankEvent(rank_event)) if !ranks.contains(&rank_event.rank()) => {
                    tracing::warn!(
                        "{name} sent an event of rank {}, which it does not have; ignored",
                        rank_event.rank()
                    );
                }
                Ok(ToLeader::RankEvent(RankEvent::Said {
                    message: ToLauncher::Put { key, value },
                    ..
                })) => {
                    store.put(key, value);
                }
                Ok(ToLeader::RankEvent(RankEvent::Said {
                    message: ToLauncher::Get { key },
                    ..
                })) => {
                    store.get_for(member.connection.sender(), key);
                }
                Ok(ToLeader::RankEvent(rank_event)) => return FromNode::RankEvent(rank_event),
                Ok(ToLeader::Signal(signal)) => {
                    return FromNode::StopAsked(format!("{signal} on {name}"));
                }
                Ok(ToLeader::StopNow(signal)) => {
                    return FromNode::StopNow(format!("{signal} again on {name}"));
                }
                Ok(ToLeader::Log { rank, path, tail }) => {
                    self.logs.insert(rank, (path, tail));
                }
                Ok(ToLeader::AttemptEnded) => {
                    member.reported = true;
                    return FromNode::Reported;
                }
                Ok(ToLeader::Decline(unable)) => return FromNode::Unable(unable),
                Ok(ToLeader::Join(_) | ToLeader::Heartbeat) => {}
            }
        }
    }

    /// Waits for the reports of the other nodes, and returns the logs and last lines of their ranks, by rank.
    /// To be called when all ranks have ended. A node that does not report in time counts as lost.
    pub async fn end_attempt(&mut self, store: &KeyValueStore) -> BTreeMap<usize, LogTail> {
        let deadline = Instant::now() + REPORT_TIMEOUT;
        while self.members.values().any(|member| !member.lost && !member.reported) {
            match timeout_at(deadline, self.next(store)).await {
                Ok(FromNode::StopAsked(reason) | FromNode::StopNow(reason)) => {
                    self.stop_asked = Some(reason)
                }
                Ok(_) => {}
                Err(_) => {
                    let late = self.members.values_mut().filter(|member| !member.reported);
                    late.for_each(|member| member.lost = true);
                }
            }
        }
        std::mem::take(&mut self.logs)
    }

    /// Tells all other nodes how the job has ended, and waits until they have closed their connections, for
    /// at most [`CLOSE_TIMEOUT`].
    pub async fn finish(&mut self, exit_code: ExitCode, text: &str) {
        self.broadcast(&ToMember::Finish { exit_code: exit_code as u8, text: super::cut(text) });
        // All launchers end at the same moment: when one task of a Slurm step fails, Slurm kills the others,
        // whose exit codes would then be different ones.
        let deadline = Instant::now() + CLOSE_TIMEOUT;
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
