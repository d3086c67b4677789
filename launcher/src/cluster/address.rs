//! The address at which launchers meet, and the network interface over which ranks then talk.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket, lookup_host};
use tokio::time::timeout;

/// A name server that does not answer in this time counts as one that does not know the name.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Number of consecutive ports that are tried where the user names none.
const PORTS_TRIED: u16 = 16;

/// Maximum number of connections that wait to be accepted.
const BACKLOG: u32 = 1024;

/// Where node 0's launcher listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendezvous {
    /// Host name or IP address of node 0.
    pub host: String,
    /// One port, or several that are tried in ascending order.
    pub ports: RangeInclusive<u16>,
}

impl Rendezvous {
    /// Returns the rendezvous at `host` of a job that has a number but was given no port. Jobs whose numbers
    /// differ by less than 750 get ranges of ports that do not overlap.
    pub fn of_job(host: String, job: u64) -> Self {
        // Below the ephemeral ports, which begin at 32768 on Linux.
        let first = 20_000 + u16::try_from(job % 750).unwrap_or(0) * PORTS_TRIED;
        Self { host, ports: first..=first + PORTS_TRIED - 1 }
    }

    /// Resolves the host name to its addresses, of which there is at least one.
    ///
    /// # Errors
    /// A sentence that says that the name does not resolve, and why.
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

    /// Listens at the first port that is free: at the address that the host name resolves to if that is one
    /// of this machine's, else at all addresses.
    ///
    /// # Errors
    /// A sentence that names the address and says why it cannot be bound.
    pub async fn listen(&self) -> Result<TcpListener, String> {
        let resolved = self.resolve().await?;
        let own: Vec<IpAddr> = if_addrs::get_if_addrs()
            .unwrap_or_default()
            .iter()
            .map(if_addrs::Interface::ip)
            .collect();
        let address = resolved.iter().find(|address| own.contains(address)).copied();
        // Debian's /etc/hosts gives a machine's own name a loopback address, which no other machine reaches.
        let address = address.filter(|address| !address.is_loopback() || self.host_is_loopback());
        let mut reason = String::new();
        for port in self.ports.clone() {
            let listener = match address {
                Some(address) => TcpListener::bind(SocketAddr::new(address, port)).await,
                None => listen_everywhere(port).await,
            };
            match listener {
                Ok(listener) => return Ok(listener),
                Err(error) => reason = error.to_string(),
            }
        }
        let address = address.map_or_else(|| "any address".to_owned(), |it| it.to_string());
        Err(format!("cannot listen at {}: {reason}", self.display_at(&address)))
    }

    fn host_is_loopback(&self) -> bool {
        self.host == "localhost" || self.host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
    }

    fn display_at(&self, host: &str) -> String {
        match (self.ports.start(), self.ports.end()) {
            (first, last) if first == last && host.contains(':') => format!("[{host}]:{first}"),
            (first, last) if first == last => format!("{host}:{first}"),
            (first, last) => format!("{host}, any port of {first} to {last}"),
        }
    }
}

/// Listens at all addresses, those of IPv6 included where the system has it.
async fn listen_everywhere(port: u16) -> io::Result<TcpListener> {
    let of_both = TcpSocket::new_v6().and_then(|socket| {
        rustix::net::sockopt::set_ipv6_v6only(&socket, false)?;
        Ok(socket)
    });
    let Ok(socket) = of_both else {
        return TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await;
    };
    socket.set_reuseaddr(true)?;
    socket.bind((Ipv6Addr::UNSPECIFIED, port).into())?;
    socket.listen(BACKLOG)
}

impl std::fmt::Display for Rendezvous {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.ports.start(), self.ports.end()) {
            (first, last) if first == last => write!(f, "{}:{first}", self.host),
            (first, last) => write!(f, "{}, ports {first} to {last}", self.host),
        }
    }
}

/// Parses the value of `--rendezvous`, `HOST:PORT`.
impl std::str::FromStr for Rendezvous {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wanted = "expected a host and a port, such as node0:29400";
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
    /// Its name, such as `eth0`.
    pub name: String,
    /// Its IPv4 network, such as `10.0.0.0/24`, if it has one: Open MPI takes no IPv6 networks.
    pub network: Option<String>,
}

/// Returns the interface that has `address`, which is the local address of a connection between nodes, so
/// that the route between them leads through it. `None` for loopback.
pub fn interface_of(address: IpAddr) -> Option<Interface> {
    find_interface(address, &if_addrs::get_if_addrs().ok()?)
}

/// Does the same among `all` interfaces, which have an entry for each address.
fn find_interface(address: IpAddr, all: &[if_addrs::Interface]) -> Option<Interface> {
    let address = address.to_canonical();
    let found = all.iter().find(|it| it.ip() == address && !it.is_loopback())?;
    let of_same = all.iter().filter(|it| it.name == found.name);
    let network = std::iter::once(found).chain(of_same).find_map(|it| match &it.addr {
        if_addrs::IfAddr::V4(v4) => {
            let bits = u32::from(v4.netmask).count_ones();
            Some(format!("{}/{bits}", Ipv4Addr::from(u32::from(v4.ip) & u32::from(v4.netmask))))
        }
        if_addrs::IfAddr::V6(_) => None,
    });
    Some(Interface { name: found.name.clone(), network })
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

    #[tokio::test]
    async fn where_no_address_is_meant_both_families_are_let_in() {
        let Ok(listener) = listen_everywhere(0).await else { panic!("no port") };
        let address = listener.local_addr().unwrap();
        tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, address.port())).await.unwrap();
        let has_ipv6 = std::net::TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok();
        if has_ipv6 {
            tokio::net::TcpStream::connect((Ipv6Addr::LOCALHOST, address.port())).await.unwrap();
        } else {
            eprintln!("skipped: no IPv6 here");
        }
    }

    #[test]
    fn open_mpi_is_given_the_ipv4_network_of_an_interface_or_none() {
        let interface = |name: &str, addr| if_addrs::Interface {
            name: name.to_owned(),
            addr,
            index: None,
            oper_status: if_addrs::IfOperStatus::Up,
            is_p2p: false,
        };
        let v4 = if_addrs::IfAddr::V4(if_addrs::Ifv4Addr {
            ip: [10, 1, 2, 3].into(),
            netmask: [255, 255, 0, 0].into(),
            prefixlen: 16,
            broadcast: None,
        });
        let v6 = |ip: &str| {
            if_addrs::IfAddr::V6(if_addrs::Ifv6Addr {
                ip: ip.parse().unwrap(),
                netmask: "ffff:ffff:ffff:ffff::".parse().unwrap(),
                prefixlen: 64,
                broadcast: None,
            })
        };
        let all = [
            interface("eth0", v6("fd00::1")),
            interface("eth0", v4),
            interface("eth1", v6("fd01::1")),
        ];
        let found = |ip: &str| find_interface(ip.parse().unwrap(), &all).unwrap();
        for ip in ["fd00::1", "10.1.2.3", "::ffff:10.1.2.3"] {
            let network = Some("10.1.0.0/16".to_owned());
            assert_eq!(found(ip), Interface { name: "eth0".to_owned(), network });
        }
        assert_eq!(found("fd01::1"), Interface { name: "eth1".to_owned(), network: None });
    }
}
