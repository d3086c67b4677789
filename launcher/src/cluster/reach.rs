//! How other nodes connect to node 0.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use job::ExitCode;
use tokio::net::TcpStream;
use tokio::sync::mpsc::{self, UnboundedReceiver};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::address::{Interface, interface_of};
use super::connection::Connection;
use super::handshake::{self, HandshakeError};
use super::message::{ToLeader, ToMember};
use super::{Cluster, DECLINE_TIMEOUT, TokenSource};
use crate::error::LaunchError;

/// Pause between attempts to reach node 0.
const RETRY: Duration = Duration::from_millis(300);

/// How long a failed resolution of node 0's host name is tried again.
const RESOLVE: Duration = Duration::from_secs(5);

/// Timeout, in an attempt to reach one address, of the TCP connection and again of the handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection to node 0's launcher, after the handshake.
pub(super) struct Link {
    pub(super) connection: Connection<ToLeader>,
    pub(super) incoming: UnboundedReceiver<Result<ToMember, String>>,
    /// This node's network interface that the connection goes over; `None` for loopback.
    pub(super) interface: Option<Interface>,
}

/// Connects to node 0, and tries again for as long as `join_timeout`.
///
/// # Errors
/// [`LaunchError::Token`] when the environment has no usable token; [`LaunchError::Cluster`] when node 0
/// cannot be reached in time, or its only port is that of a launcher with another token.
pub(super) async fn reach(cluster: &Cluster, join_timeout: Duration) -> Result<Link, LaunchError> {
    if matches!(cluster.token_source, TokenSource::Environment) {
        cluster.token_source.read_or_make()?; // unlike a file, it does not change
    }
    let deadline = Instant::now() + join_timeout;
    let addresses = resolve(cluster, deadline).await?;
    let mut problem = "nobody answered".to_owned();
    while Instant::now() < deadline {
        for address in &addresses {
            for port in cluster.rendezvous.ports.clone() {
                if Instant::now() >= deadline {
                    break; // each of many ports may take its time
                }
                match connect(cluster, (*address, port).into()).await {
                    Ok(link) => return Ok(link),
                    // One of several ports may be that of another job, but a single one is this job's.
                    Err(HandshakeError::WrongToken) if cluster.has_one_port() => {
                        let text =
                            format!("the launcher at {} has another token", cluster.rendezvous);
                        return Err(LaunchError::Cluster { exit_code: ExitCode::Setup, text });
                    }
                    Err(error) => problem = format!("port {port}: {error}"),
                }
            }
        }
        sleep(RETRY).await;
    }
    let text =
        format!("cannot join node 0 at {} within {join_timeout:?}: {problem}", cluster.rendezvous);
    Err(LaunchError::Cluster { exit_code: ExitCode::Hang, text })
}

/// Resolves node 0's host name until `deadline`. Tries again for [`RESOLVE`]: a name server may fail once, but
/// a name that does not resolve for a while is wrong.
async fn resolve(cluster: &Cluster, deadline: Instant) -> Result<Vec<IpAddr>, LaunchError> {
    let try_until = deadline.min(Instant::now() + RESOLVE);
    loop {
        let resolving = timeout_at(deadline, cluster.rendezvous.resolve()).await;
        let late = || format!("{} does not resolve: no answer in time", cluster.rendezvous.host);
        match resolving.unwrap_or_else(|_| Err(late())) {
            Ok(addresses) => return Ok(addresses),
            Err(_) if Instant::now() + RETRY < try_until => sleep(RETRY).await,
            Err(reason) => {
                return Err(LaunchError::Cluster { exit_code: ExitCode::Setup, text: reason });
            }
        }
    }
}

async fn connect(cluster: &Cluster, address: SocketAddr) -> Result<Link, HandshakeError> {
    // Read for each attempt, since node 0's launcher may still have to make it.
    let Some(token) = cluster.token_source.read().map_err(std::io::Error::other)? else {
        return Err(std::io::Error::other(cluster.token_source.absent()).into());
    };
    let connecting = timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await;
    let mut stream = connecting.map_err(|_| HandshakeError::Unreachable(CONNECT_TIMEOUT))??;
    stream.set_nodelay(true)?;
    let shaking = handshake::connect(&mut stream, &token);
    let shaken = timeout(CONNECT_TIMEOUT, shaking).await;
    let seals = shaken.map_err(|_| HandshakeError::Silent(CONNECT_TIMEOUT))??;
    let interface = interface_of(stream.local_addr()?.ip());
    let (sender, incoming) = mpsc::unbounded_channel();
    let connection = Connection::start(stream, seals, ToLeader::Heartbeat, move |message| {
        // The receiver is gone when this launcher ends.
        let _ = sender.send(message);
    });
    Ok(Link { connection, incoming, interface })
}

/// Tells node 0, if it can be reached soon, that this node cannot take part because of `error`.
pub async fn decline(cluster: &Cluster, error: &LaunchError) {
    match reach(cluster, DECLINE_TIMEOUT.min(cluster.join_timeout)).await {
        Ok(Link { connection, .. }) => {
            connection.send(ToLeader::Decline(super::unable(cluster, error)));
            connection.close().await;
        }
        Err(unreached) => tracing::warn!("node 0 was not told: {unreached}"),
    }
}
