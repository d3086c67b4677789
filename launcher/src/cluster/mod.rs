//! Several machines, one launcher on each.
//!
//! Node 0's launcher decides for all ([`host`]); the others join it over TCP and do what it says
//! ([`member`]). Trainers talk to the launcher of their own machine only.

pub mod address;
mod agree;
mod connection;
pub mod gate;
pub mod gather;
pub mod handshake;
pub mod host;
pub mod member;
pub mod message;
pub mod reach;
pub mod token;

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use address::{Interface, Rendezvous};
use gate::Gate;
use job::ExitCode;
use message::Unable;
use token::{Made, Token, TokenError};

use crate::error::LaunchError;

/// How long a node that cannot take part tries to tell the others.
const DECLINE_TIMEOUT: Duration = Duration::from_secs(30);

/// A sentence about a node has to fit a frame with room to spare.
const MAX_REASON: usize = 8000;

/// The machines of a job, as each launcher is told.
#[derive(Debug, Clone)]
pub struct Cluster {
    /// How many.
    pub nodes: usize,
    /// This one's place among them.
    pub node_rank: usize,
    /// Where node 0's launcher is.
    pub rendezvous: Rendezvous,
    /// How long to wait for the others.
    pub join_timeout: Duration,
    /// Where the token is.
    pub secret: Secret,
    /// Where this node keeps its part of the run, if it was told.
    pub run_dir: Option<PathBuf>,
}

impl Cluster {
    /// Listens for the others, on node 0, which makes the token unless the user has.
    ///
    /// # Errors
    /// [`LaunchError`] when the port or the token cannot be had.
    pub async fn open_gate(&self) -> Result<Gate, LaunchError> {
        let setup = LaunchError::cluster(ExitCode::Setup);
        let listener = self.rendezvous.listen().await.map_err(setup)?;
        let token = self.secret.read_or_make()?;
        let made = self.secret.made(&token);
        Ok(Gate::new(self.rendezvous.clone(), token, made, listener))
    }

    /// Whether all agree on one port, so that whoever listens there is meant.
    pub fn has_one_port(&self) -> bool {
        self.rendezvous.ports.start() == self.rendezvous.ports.end()
    }
}

/// Where the token is.
#[derive(Debug, Clone)]
pub enum Secret {
    /// In the environment.
    Environment,
    /// In this file, which the user keeps.
    File(PathBuf),
    /// In this file, which node 0 makes for the job.
    Made(PathBuf),
}

impl Secret {
    /// The environment wins over `file`, and that over one that is made for the `job`.
    ///
    /// # Errors
    /// [`TokenError::NoHome`] where there is no place for that.
    pub fn choose(file: Option<PathBuf>, job: &str) -> Result<Self, TokenError> {
        Ok(match (std::env::var_os(token::TOKEN), file) {
            (Some(_), _) => Self::Environment,
            (None, Some(path)) => Self::File(path),
            (None, None) => Self::Made(token::default_path(std::env::var_os("HOME"), job)?),
        })
    }

    /// The token, if it is there.
    ///
    /// # Errors
    /// [`TokenError`].
    pub fn read(&self) -> Result<Option<Token>, TokenError> {
        match self {
            Self::Environment => Token::from_env(),
            Self::File(path) => Token::read(path),
            Self::Made(path) => token::check_folder(path).and_then(|()| Token::read(path)),
        }
    }

    /// The token of node 0, which makes it where the user has not.
    ///
    /// # Errors
    /// [`TokenError`].
    pub fn read_or_make(&self) -> Result<Token, TokenError> {
        match (self, self.read()) {
            (Self::Made(path), _) => token::check_folder(path).and_then(|()| Token::create(path)),
            (_, Ok(Some(token))) => Ok(token),
            (Self::File(path), Ok(None)) => Token::create(path),
            (Self::Environment, Ok(None)) => {
                Err(TokenError::Short { place: token::TOKEN.to_owned() })
            }
            (_, Err(error)) => Err(error),
        }
    }

    /// The file that was made for this job, if one was, with `token` in it.
    fn made(&self, token: &Token) -> Option<Made> {
        match self {
            Self::Made(path) => Some(Made { path: path.clone(), token: token.clone() }),
            Self::Environment | Self::File(_) => None,
        }
    }

    /// What to do where there is no token.
    pub fn absent(&self) -> String {
        match self {
            Self::Environment => format!("{} is not set", token::TOKEN),
            Self::File(path) | Self::Made(path) => format!(
                "no token: {} is not there; node 0's launcher makes it: copy it here, or set {} on \
                 every node",
                path.display(),
                token::TOKEN
            ),
        }
    }
}

/// Has libraries use the network between the nodes; a variable that is set already wins.
pub fn network_variables(interface: &Interface) -> Vec<(&'static str, String)> {
    // Exactly this one, not those whose names begin like it.
    let nccl = ("NCCL_SOCKET_IFNAME", format!("={}", interface.name));
    let network = interface.network.clone();
    let mpi = network.map(|network| ("OMPI_MCA_btl_tcp_if_include", network));
    std::iter::once(nccl).chain(mpi).collect()
}

/// What fits into a frame.
fn cut(text: &str) -> String {
    text.chars().take(MAX_REASON).collect()
}

/// That this node cannot take part.
fn unable(cluster: &Cluster, error: &LaunchError) -> Unable {
    Unable {
        host: job::host::name(),
        node_rank: cluster.node_rank,
        exit_code: error.exit_code() as u8,
        text: cut(&error.to_string()),
    }
}

/// What this machine's clock says, in seconds since 1970.
pub fn unix_seconds() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}
