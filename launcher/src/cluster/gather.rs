//! Node 0 waits until all other nodes have joined and fit the job; else all are told why not.

use std::collections::BTreeMap;

use job::ExitCode;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::address::interface_of;
use super::agree::{agree, name};
use super::connection::Connection;
use super::gate::{AuthenticatedPeer, FirstMessage, Gate};
use super::leader::{Leader, RemoteNode};
use super::message::{ToLeader, ToMember};
use super::{Cluster, DECLINE_TIMEOUT};
use crate::error::LaunchError;

impl Leader {
    /// Waits until every node has joined, lost ones again.
    ///
    /// # Errors
    /// [`LaunchError::Cluster`] when a node does not join in time, does not fit, cannot take part or is asked
    /// to stop; those that have joined are told.
    pub async fn gather(&mut self) -> Result<(), LaunchError> {
        self.members.retain(|_, member| !member.lost);
        let gathered = self.gather_all().await;
        self.gate.close().await;
        if let Err(error) = &gathered {
            self.finish(error.exit_code(), &error.to_string()).await;
        }
        gathered
    }

    async fn gather_all(&mut self) -> Result<(), LaunchError> {
        let deadline = Instant::now() + self.join_timeout;
        self.gate.open().await.map_err(LaunchError::cluster(ExitCode::Setup))?;
        while self.members.len() + 1 < self.me.nodes {
            tokio::select! {
                () = sleep_until(deadline) => return Err(self.missing()),
                peer = self.gate.next() => self.add(peer).await?,
                Some((node, from, message)) = self.incoming.recv() => {
                    if self.addresses.get(&node) == Some(&from) {
                        self.hear(node, message)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Handles a message of a node that has joined and waits for the others.
    fn hear(&mut self, node: usize, message: Result<ToLeader, String>) -> Result<(), LaunchError> {
        match message {
            Err(_) => _ = self.members.remove(&node),
            Ok(ToLeader::Decline(unable)) => return Err(unable.into()),
            Ok(ToLeader::Signal(signal) | ToLeader::StopNow(signal)) => {
                let place = self.members.get(&node).map(|member| name(&member.introduction));
                let text = format!("stopped by {signal} on {}", place.unwrap_or_default());
                return Err(LaunchError::Cluster { exit_code: ExitCode::Stopped, text });
            }
            Ok(_) => {}
        }
        Ok(())
    }

    async fn add(&mut self, peer: AuthenticatedPeer) -> Result<(), LaunchError> {
        let AuthenticatedPeer { stream, seals, from, first_message } = peer;
        let introduction = match first_message {
            FirstMessage::Join(introduction) => *introduction,
            FirstMessage::Decline(unable) => return Err(unable.into()),
        };
        let skew_seconds = introduction.unix_seconds - super::unix_seconds();
        let node = introduction.node_rank;
        let taken = self.members.get(&node).map(|member| name(&member.introduction));
        self.interface = self.interface.take().or_else(|| {
            let address = stream.local_addr().ok()?.ip();
            interface_of(address)
        });
        let incoming = self.sender.clone();
        let connection = Connection::start(stream, seals, ToMember::Heartbeat, move |message| {
            // The receiver is gone when the job is over.
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
        let ranks = job::counted(introduction.ranks, "rank");
        tracing::info!("{} has joined: {ranks}", name(&introduction));
        let address = from.ip();
        self.addresses.insert(node, from);
        let member = RemoteNode {
            introduction,
            address,
            skew_seconds,
            connection,
            lost: false,
            reported: true,
        };
        self.members.insert(node, member);
        Ok(())
    }

    fn missing(&self) -> LaunchError {
        let absent: Vec<_> = (1..self.me.nodes)
            .filter(|node| !self.members.contains_key(node))
            .map(|node| node.to_string())
            .collect();
        let there: Vec<_> = std::iter::once(name(&self.me))
            .chain(self.members.values().map(|member| name(&member.introduction)))
            .collect();
        let text = format!(
            "node {} did not join within {:?} at {}; joined: {}{}",
            absent.join(", "),
            self.join_timeout,
            self.gate.rendezvous(),
            there.join(", "),
            self.gate.refusals(),
        );
        LaunchError::Cluster { exit_code: ExitCode::Hang, text }
    }
}

/// Tells the other nodes, as they connect, that node 0 cannot take part because of `error`. Those that do not
/// connect within [`DECLINE_TIMEOUT`], or `join_timeout` if that is shorter, are not told.
pub async fn turn_away(cluster: &Cluster, mut gate: Gate, error: &LaunchError) {
    let text = super::unable(cluster, error).to_string();
    let finish = ToMember::Finish { exit_code: error.exit_code() as u8, text };
    let deadline = Instant::now() + DECLINE_TIMEOUT.min(cluster.join_timeout);
    let mut told: BTreeMap<usize, Connection<ToMember>> = BTreeMap::new();
    while told.len() + 1 < cluster.nodes {
        let Ok(peer) = timeout_at(deadline, gate.next()).await else { break };
        let node = match &peer.first_message {
            FirstMessage::Join(introduction) => introduction.node_rank,
            FirstMessage::Decline(unable) => unable.node_rank,
        };
        let ignore = |_: Result<ToLeader, String>| {};
        let connection = Connection::start(peer.stream, peer.seals, ToMember::Heartbeat, ignore);
        connection.send(finish.clone());
        told.insert(node, connection);
    }
    // All end at the same moment, as in `finish`.
    for connection in told.into_values() {
        connection.close().await;
    }
}
