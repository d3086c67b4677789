//! Reads the configuration, opens the device and connects a rank with its peers.

use std::sync::Arc;
use std::time::Duration;

use comm::Communicator;
use comm::bootstrap::{Backend, Store};
use comm::control::Phase;
use comm::env::World;
use job::config::{self, Config};
use tch::Device;

use crate::cli::TrainArgs;
use crate::link::Link;
use crate::{Result, device};

/// A rank that is connected with its peers.
pub struct Connected {
    /// The configuration with all overrides applied.
    pub config: Config,
    /// The device of this rank.
    pub device: Device,
    /// The backend of the collectives.
    pub backend: Backend,
    /// The collectives with the other ranks.
    pub communicator: Arc<dyn Communicator>,
}

/// Reads the configuration, opens this rank's device and connects it with its peers. Collective.
///
/// # Errors
/// When the configuration is invalid or does not fit the number of ranks, the device cannot be opened, or
/// ranks do not find each other.
pub fn connect(args: &TrainArgs, world: World, link: &Link) -> Result<Connected> {
    let overrides = args.overrides();
    let config = config::load(&args.config, &overrides)?;
    let refused = |invalid| config::refused(&args.config, &overrides, invalid);
    config.train.check_shared_by(world.world_size).map_err(refused)?;
    device::limit_threads(world);
    let device = device::open(args.device, world)?;
    config.performance.check_device(device.is_cuda()).map_err(refused)?;
    link.state(Phase::Connecting, 0, 0);
    let backend = device::backend(&config.comm, device, world).map_err(refused)?;
    let communicator = find_peers(&config.comm, backend, world, link.store())?;
    Ok(Connected { config, device, backend, communicator })
}

/// Connects a rank with its peers over `backend`. Collective.
///
/// # Errors
/// When the ranks do not find each other within `comm.timeout_seconds`.
pub fn find_peers(
    comm: &config::Comm,
    backend: Backend,
    world: World,
    store: Option<&dyn Store>,
) -> Result<Arc<dyn Communicator>> {
    let timeout = Duration::from_secs(comm.timeout_seconds);
    Ok(comm::bootstrap::connect(backend, world, store, timeout)?)
}
