//! Where launchers meet, and over which network the ranks then talk.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

use tokio::net::{TcpListener, lookup_host};
use tokio::time::timeout;

/// A name server that does not answer in this time counts as one that does not know the name.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Ports that are tried, from the first one up, where the user names none.
const PORTS_TRIED: u16 = 16;

/// Where node 0's launcher is to be found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendezvous {
    /// Name or address of node 0.
    pub host: String,
    /// One port, or those that are tried upward.
    pub ports: RangeInclusive<u16>,
}

impl Rendezvous {
    /// Ports of a job that has a number but was given no port: two jobs whose numbers are close do not
    /// try the same port first.
    pub fn of_job(host: String, job: u64) -> Self {
        // Below the ports that systems give out by themselves, from 32768 on.
        let first = 20_000 + u16::try_from(job % 750).unwrap_or(0) * PORTS_TRIED;
        Self { host, ports: first..=first + PORTS_TRIED - 1 }
    }

    /// The addresses of the host.
    ///
    /// # Errors
    /// A sentence that says that the name does not resolve.
    pub async fn resolve(&self) -> Result<Vec<IpAddr>, String> {
        let lookup = timeout(RESOLVE_TIMEOUT, lookup_host((self.host.as_str(), 0))).await;
        let reason = match lookup {
            Ok(Ok(found)) => {
                let addresses: Vec<_> = found.map(|address| address.ip()).collect();
                if !addresses.is_empty() {
                    return Ok(addresses);
                }
                "it has no address".to_owned()
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {RESOLVE_TIMEOUT:?}"),
        };
        Err(format!("the host name {} does not resolve: {reason}", self.host))
    }

    /// Listens where the others will look: at the address of the name where that is this machine's,
    /// else at all of its addresses.
    ///
    /// # Errors
    /// A sentence that names the address and why it cannot be had.
    pub async fn listen(&self) -> Result<TcpListener, String> {
        let resolved = self.resolve().await?;
        let own: Vec<IpAddr> = if_addrs::get_if_addrs()
            .unwrap_or_default()
            .iter()
            .map(if_addrs::Interface::ip)
            .collect();
        let address = resolved.iter().find(|address| own.contains(address)).copied();
        // Debian's /etc/hosts gives a machine's own name a loopback address, where nobody else is.
        let address = address.filter(|address| !address.is_loopback() || self.host_is_loopback());
        let address = address.unwrap_or(IpAddr::from([0, 0, 0, 0]));
        let mut reason = String::new();
        for port in self.ports.clone() {
            match TcpListener::bind(SocketAddr::new(address, port)).await {
                Ok(listener) => return Ok(listener),
                Err(error) => reason = error.to_string(),
            }
        }
        Err(format!("cannot listen at {}: {reason}", self.display_at(address)))
    }

    fn host_is_loopback(&self) -> bool {
        self.host == "localhost" || self.host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
    }

    fn display_at(&self, address: IpAddr) -> String {
        match (self.ports.start(), self.ports.end()) {
            (first, last) if first == last => SocketAddr::new(address, *first).to_string(),
            (first, last) => format!("{address}, any port of {first} to {last}"),
        }
    }
}

impl std::fmt::Display for Rendezvous {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.ports.start(), self.ports.end()) {
            (first, last) if first == last => write!(f, "{}:{first}", self.host),
            (first, last) => write!(f, "{}, ports {first} to {last}", self.host),
        }
    }
}

/// What `--rendezvous` takes: `HOST:PORT`.
impl std::str::FromStr for Rendezvous {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wanted = "wants a host and a port, such as node0:29400";
        let (host, port) = text.rsplit_once(':').ok_or(wanted)?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        match port.parse() {
            Ok(port) if port > 0 && !host.is_empty() => {
                Ok(Self { host: host.to_owned(), ports: port..=port })
            }
            _ => Err(wanted.to_owned()),
        }
    }
}

/// A network interface of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Such as `eth0`.
    pub name: String,
    /// Its network, such as `10.0.0.0/24`.
    pub network: String,
}

/// The interface that has `address`: that of a connection between the nodes, so the route between them
/// leads through it. `None` for loopback.
pub fn interface_of(address: IpAddr) -> Option<Interface> {
    let interfaces = if_addrs::get_if_addrs().ok()?;
    let found = interfaces.into_iter().find(|it| it.ip() == address && !it.is_loopback())?;
    let network = match &found.addr {
        if_addrs::IfAddr::V4(v4) => {
            let bits = u32::from(v4.netmask).count_ones();
            let network = u32::from(v4.ip) & u32::from(v4.netmask);
            format!("{}/{bits}", std::net::Ipv4Addr::from(network))
        }
        if_addrs::IfAddr::V6(v6) => {
            let bits = u128::from(v6.netmask).count_ones();
            let network = u128::from(v6.ip) & u128::from(v6.netmask);
            format!("{}/{bits}", std::net::Ipv6Addr::from(network))
        }
    };
    Some(Interface { name: found.name, network })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rendezvous_is_a_host_and_a_port() {
        let parsed: Rendezvous = "node0:29400".parse().unwrap();
        assert_eq!(parsed, Rendezvous { host: "node0".to_owned(), ports: 29400..=29400 });
        assert_eq!("[fe80::1]:7".parse::<Rendezvous>().unwrap().host, "fe80::1");
        for wrong in ["node0", "node0:", ":29400", "node0:0", "node0:70000"] {
            assert!(wrong.parse::<Rendezvous>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn ports_of_neighbouring_jobs_do_not_overlap() {
        let (first, second) =
            (Rendezvous::of_job("a".into(), 749), Rendezvous::of_job("a".into(), 750));
        assert_eq!((*first.ports.start(), *first.ports.end()), (31984, 31999));
        assert_eq!(*second.ports.start(), 20000);
    }

    #[tokio::test]
    async fn a_taken_port_is_named_and_one_of_several_is_skipped() {
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = taken.local_addr().unwrap().port();
        let at = |ports| Rendezvous { host: "127.0.0.1".to_owned(), ports };
        let error = at(port..=port).listen().await.unwrap_err();
        assert!(error.contains(&format!("127.0.0.1:{port}")), "{error}");
        let listener = at(port..=port + 15).listen().await.unwrap();
        assert!(listener.local_addr().unwrap().port() > port);
    }
}
