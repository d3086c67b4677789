//! Several machines, one launcher on each.
//!
//! Node 0's launcher decides for all ([`leader`]); the others join it over TCP and do what it says
//! ([`member`]). Trainers talk to the launcher of their own machine only.

pub mod address;
mod agree;
mod connection;
pub mod gate;
pub mod gather;
pub mod handshake;
pub mod leader;
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
use token::{TemporaryTokenFile, Token, TokenError};

use crate::error::LaunchError;

/// How long a node that cannot take part tries to tell the others.
const DECLINE_TIMEOUT: Duration = Duration::from_secs(30);

/// Maximum number of characters of a sentence to another node, so that it fits a frame with room to spare;
/// longer ones are cut.
const MAX_REASON: usize = 8000;

/// The nodes of a job, as each launcher is told.
#[derive(Debug, Clone)]
pub struct Cluster {
    /// Number of nodes.
    pub nodes: usize,
    /// Rank of this node, from 0.
    pub node_rank: usize,
    /// Where node 0's launcher listens.
    pub rendezvous: Rendezvous,
    /// How long to wait for the other nodes.
    pub join_timeout: Duration,
    /// Where the token is.
    pub token_source: TokenSource,
    /// Run directory of this node, if the user has named one.
    pub run_dir: Option<PathBuf>,
}

impl Cluster {
    /// Listens for the other nodes, and reads the token, or makes it unless the user has. For node 0.
    ///
    /// # Errors
    /// [`LaunchError`] when the port cannot be bound, or the token cannot be read or made.
    pub async fn open_gate(&self) -> Result<Gate, LaunchError> {
        let setup = LaunchError::cluster(ExitCode::Setup);
        let listener = self.rendezvous.listen().await.map_err(setup)?;
        let token = self.token_source.read_or_make()?;
        let temporary = self.token_source.temporary_file(&token);
        Ok(Gate::new(self.rendezvous.clone(), token, temporary, listener))
    }

    /// Returns whether the rendezvous is a single port, so that whatever listens there is meant.
    pub fn has_one_port(&self) -> bool {
        self.rendezvous.ports.start() == self.rendezvous.ports.end()
    }
}

/// Where the token is.
#[derive(Debug, Clone)]
pub enum TokenSource {
    /// In the environment variable [`TOKEN`](token::TOKEN).
    Environment,
    /// In this file, which the user keeps.
    File(PathBuf),
    /// In this file, which node 0 makes for the job.
    Made(PathBuf),
}

impl TokenSource {
    /// Chooses the environment variable if it is set, else `file` if there is one, else a file in the home
    /// directory that node 0 makes for the `job`.
    ///
    /// # Errors
    /// [`TokenError::NoHome`] when that file is needed and `HOME` is not set.
    pub fn choose(file: Option<PathBuf>, job: &str) -> Result<Self, TokenError> {
        Ok(match (std::env::var_os(token::TOKEN), file) {
            (Some(_), _) => Self::Environment,
            (None, Some(path)) => Self::File(path),
            (None, None) => Self::Made(token::default_path(std::env::var_os("HOME"), job)?),
        })
    }

    /// Returns the token; `None` if it is not there yet.
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

    /// Returns the token, for node 0. Makes one if the token is made for the job, or if the user's file does
    /// not exist.
    ///
    /// # Errors
    /// [`TokenError`].
    pub fn read_or_make(&self) -> Result<Token, TokenError> {
        match self {
            Self::Made(path) => token::check_folder(path).and_then(|()| Token::create(path)),
            Self::File(path) => Token::read(path)?.map_or_else(|| Token::create(path), Ok),
            Self::Environment => Token::from_env()?
                .ok_or_else(|| TokenError::Short { place: token::TOKEN.to_owned() }),
        }
    }

    /// Returns the file to remove at the end of the job, with `token` in it, if it was made for the job.
    fn temporary_file(&self, token: &Token) -> Option<TemporaryTokenFile> {
        match self {
            Self::Made(path) => {
                Some(TemporaryTokenFile { path: path.clone(), token: token.clone() })
            }
            Self::Environment | Self::File(_) => None,
        }
    }

    /// Returns a sentence that says that there is no token, and what to do.
    pub fn absent(&self) -> String {
        match self {
            Self::Environment => format!("{} is not set", token::TOKEN),
            Self::File(path) | Self::Made(path) => format!(
                "no token: {} does not exist; node 0's launcher creates it: copy it here, or set \
                 {} on every node",
                path.display(),
                token::TOKEN
            ),
        }
    }
}

/// Returns environment variables that make NCCL and Open MPI use `interface`, that between the nodes. Those
/// that are set already take precedence, as with all in [`Spec::env`](crate::spawn::Spec::env).
pub fn network_variables(interface: &Interface) -> Vec<(&'static str, String)> {
    // The `=` makes NCCL match the whole name rather than a prefix.
    let nccl = ("NCCL_SOCKET_IFNAME", format!("={}", interface.name));
    let network = interface.network.clone();
    let mpi = network.map(|network| ("OMPI_MCA_btl_tcp_if_include", network));
    std::iter::once(nccl).chain(mpi).collect()
}

/// Cuts a sentence to [`MAX_REASON`].
fn cut(text: &str) -> String {
    text.chars().take(MAX_REASON).collect()
}

/// Returns the message that this node cannot take part because of `error`.
fn unable(cluster: &Cluster, error: &LaunchError) -> Unable {
    Unable {
        host: job::host::name(),
        node_rank: cluster.node_rank,
        exit_code: error.exit_code() as u8,
        text: cut(&error.to_string()),
    }
}

/// Returns the time of this machine's clock, in seconds since 1970.
pub fn unix_seconds() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}
