//! Runs the collectives of a rank, over MPI alone or through the machine's shared memory first.

use std::sync::Arc;
use std::time::Duration;

use super::abort_channel::AbortChannel;
use super::group::{Common, Group};
use super::handle::Comm;
use super::machine::Machine;
use super::ops::Extremes;
use super::request::At;
use crate::env::World;
use crate::executor::{Engine, Job};
use crate::{Collective, Result, SharedMemory};

/// The [`Engine`] of a rank.
pub(super) struct MpiEngine {
    pub(super) rank: usize,
    pub(super) world_size: usize,
    pub(super) common: Arc<Common>,
    world: Group,
    /// `None` unless all-reduces are hierarchical.
    machine: Option<Machine>,
}

impl MpiEngine {
    /// Connects this rank. Collective. `hierarchical`: all-reduces go through shared memory where machines
    /// have several ranks.
    pub(super) fn new(world: World, hierarchical: bool, timeout: Duration) -> Result<Self> {
        let World { rank, world_size, .. } = world;
        let at = At { op: "connect", sequence: 0, rank };
        let comm = Comm::duplicate_world(at, timeout)?;
        let abort = AbortChannel::open(Comm::duplicate_world(at, timeout)?, world_size, at)?;
        let common = Arc::new(Common { extremes: Extremes::new(at)?, abort });
        let mut group = Group::new(comm, rank, world_size, timeout, &common);
        let machine = Machine::connect(world, hierarchical, timeout, &group, &common);
        let machine = common.abort.broadcast_error(machine)?;
        if let Some(machine) = &machine {
            group.add_node_group(machine.node_group());
        }
        Ok(Self { rank, world_size, common, world: group, machine })
    }

    pub(super) fn at(&self, op: &'static str, sequence: u64) -> At {
        At { op, sequence, rank: self.rank }
    }

    /// Runs the last collective: no rank returns before all have called it.
    pub(super) fn finalize(&self, sequence: u64) -> Result<()> {
        let at = self.at("finalize", sequence);
        if let Some(error) = self.common.abort.received(at) {
            return Err(error);
        }
        let ended = self.machine.as_ref().map_or(Ok(()), Machine::finalize);
        self.common.abort.broadcast_error(ended.and_then(|()| self.world.barrier(at)))
    }

    /// See [`crate::Communicator::alloc_shared`].
    pub(super) fn alloc_shared(&self, len_bytes: usize) -> Result<Option<SharedMemory>> {
        let allocate = |machine: &Machine| machine.alloc_shared(len_bytes);
        self.common.abort.broadcast_error(self.machine.as_ref().map_or(Ok(None), allocate))
    }
}

impl Engine for MpiEngine {
    fn run(&self, job: &Job) -> Result<()> {
        let (at, buffer) = (self.at(job.collective.name(), job.sequence), &job.buffer);
        if let Some(error) = self.common.abort.received(at) {
            return Err(error);
        }
        self.common.abort.broadcast_error(match (job.collective, &self.machine) {
            (Collective::AllReduce(op), Some(machine)) => machine.all_reduce(buffer, op, at),
            (Collective::AllReduce(op), None) => self.world.reduce(buffer, op, false, at),
            (Collective::ReduceScatter(op), _) => self.world.reduce(buffer, op, true, at),
            (Collective::Broadcast { root }, _) => self.world.broadcast(buffer, root, at),
            (Collective::AllGather, _) => self.world.all_gather(buffer, at),
            (Collective::Barrier, _) => self.world.barrier(at),
        })
    }
}
