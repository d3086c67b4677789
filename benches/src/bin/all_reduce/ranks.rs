//! Starts and connects the ranks of the measurement.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use comm::bootstrap::{Backend, Store, connect};
use comm::env::{StartedBy, World};
use comm::{CommError, Communicator};

const TIMEOUT: Duration = Duration::from_secs(60);

/// Environment variable with the folder of the [`FileStore`], for ranks that this program has started.
const STORE_DIR: &str = "LOCKSTEP_BENCH_STORE";

/// The communicators of one rank.
pub struct Group {
    /// The shared-memory backend, where all ranks are on this machine.
    pub shm: Option<Arc<dyn Communicator>>,
    /// The MPI backend, where `mpirun` has started this rank.
    pub mpi: Option<Arc<dyn Communicator>>,
    /// The hierarchical MPI backend, where there are several machines with several ranks each.
    pub hierarchical: Option<Arc<dyn Communicator>>,
}

impl Group {
    /// Returns the communicator over which ranks coordinate the measurement.
    pub fn any(&self) -> &dyn Communicator {
        let any = self.shm.as_ref().or(self.mpi.as_ref());
        &**any.unwrap_or_else(|| unreachable!("a group has at least one communicator"))
    }

    /// Returns whether this rank writes the report.
    pub fn is_first(&self) -> bool {
        self.any().rank() == 0
    }

    /// Finalizes all communicators. Collective.
    pub fn finalize(&self) -> Result<()> {
        for communicator in self.shm.iter().chain(&self.mpi).chain(&self.hierarchical) {
            communicator.finalize()?;
        }
        Ok(())
    }
}

/// Connects this rank. In a process that was not started as a rank, starts `world_size` ranks, waits for
/// them, and returns `None`.
pub fn connect_or_start(world_size: usize) -> Result<Option<Group>> {
    let world = World::from_env()?;
    match world.started_by {
        StartedBy::Nobody => start(world_size).map(|()| None),
        StartedBy::Launcher => {
            let dir = std::env::var_os(STORE_DIR).context(
                "LOCKSTEP_BENCH_STORE is not set: all_reduce starts its ranks by itself",
            )?;
            let shm = connect(Backend::Shm, world, Some(&FileStore(dir.into())), TIMEOUT)?;
            Ok(Some(Group { shm: Some(shm), mpi: None, hierarchical: None }))
        }
        StartedBy::Mpirun | StartedBy::Srun => with_mpi(world).map(Some),
    }
}

#[cfg(feature = "mpi")]
fn with_mpi(world: World) -> Result<Group> {
    let over_mpi = |hierarchical| connect(Backend::Mpi { hierarchical }, world, None, TIMEOUT);
    let mpi = over_mpi(false)?;
    let store = comm::mpi::Session::get()?.store();
    let is_one_machine = world.local_world_size == world.world_size;
    let shm =
        is_one_machine.then(|| connect(Backend::Shm, world, Some(&store), TIMEOUT)).transpose()?;
    let several = world.local_world_size > 1 && !is_one_machine;
    let hierarchical = several.then(|| over_mpi(true)).transpose()?;
    Ok(Group { shm, mpi: Some(mpi), hierarchical })
}

#[cfg(not(feature = "mpi"))]
fn with_mpi(_: World) -> Result<Group> {
    anyhow::bail!("this build has no MPI: build with --features mpi, or start it without mpirun")
}

fn start(world_size: usize) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let ranks: Vec<_> = (0..world_size)
        .map(|rank| {
            let world = World {
                rank,
                world_size,
                local_rank: rank,
                local_world_size: world_size,
                started_by: StartedBy::Launcher,
            };
            Command::new(std::env::current_exe()?)
                .args(std::env::args_os().skip(1))
                .envs(world.to_env())
                .env(STORE_DIR, dir.path())
                .spawn()
        })
        .collect::<Result<_, _>>()?;
    for (rank, mut process) in ranks.into_iter().enumerate() {
        let status = process.wait()?;
        ensure!(status.success(), "rank {rank}: {status}");
    }
    Ok(())
}

/// A [`Store`] with one file per value, for processes of one machine.
struct FileStore(PathBuf);

impl FileStore {
    fn path(&self, key: &str) -> PathBuf {
        self.0.join(key.replace('/', "_"))
    }
}

impl Store for FileStore {
    fn put(&self, key: &str, value: &str) -> Result<(), CommError> {
        let path = self.path(key);
        let partial = path.with_extension("partial");
        fs::write(&partial, value)
            .and_then(|()| fs::rename(&partial, &path))
            .map_err(|error| CommError::Control(format!("{}: {error}", path.display())))
    }

    fn get(&self, key: &str, timeout: Duration) -> Result<Option<String>, CommError> {
        let start = Instant::now();
        while start.elapsed() < timeout {
            if let Ok(value) = fs::read_to_string(self.path(key)) {
                return Ok(Some(value));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(None)
    }
}
