//! Hierarchical all-reduce: the ranks of each machine reduce in shared memory first, so that each element
//! crosses the network once per machine rather than once per rank.

use std::sync::Arc;
use std::time::Duration;

use super::group::{Common, Group};
use super::handle::Comm;
use super::request::At;
use super::session::BroadcastStore;
use crate::communicator::chunk_range;
use crate::env::World;
use crate::shm::{self, MAX_RANKS, Shm};
use crate::{BufferMut, Collective, Communicator, RawBuffer, ReduceOp, Result, SharedMemory};

/// This rank's groups within its machine and across machines.
pub(super) struct Machine {
    shm: Arc<Shm>,
    /// The ranks with the same local rank on all machines: they reduce the same chunk.
    column: Group,
    place: usize,
    ranks: usize,
}

impl Machine {
    /// Connects the groups. Collective. Returns `None` unless `hierarchical` is set on all ranks and there
    /// are several machines, each with the same number of consecutive ranks, more than one.
    pub(super) fn connect(
        world: World,
        hierarchical: bool,
        timeout: Duration,
        all: &Group,
        common: &Arc<Common>,
    ) -> Result<Option<Self>> {
        let World { rank, world_size, .. } = world;
        let at = At { op: "connect", sequence: 0, rank };
        let local_world_size = if hierarchical { world.local_world_size } else { 1 };
        let mut places = vec![0_i64; 2 * world_size];
        places[2 * rank] = world.local_rank as i64;
        places[2 * rank + 1] = local_world_size as i64;
        all.all_gather(&BufferMut::host(&mut places).raw(), at)?;
        let Some(ranks) = ranks_a_machine(&places) else { return Ok(None) };

        let (machine, place) = (rank / ranks, rank % ranks);
        let first = machine * ranks;
        let store = BroadcastStore::new(Comm::split_world(machine, at)?, rank, first);
        let column = Comm::split_world(place, at)?;
        let shm = shm::connect(rank, first..first + ranks, &store, "comm/mpi", timeout)?;
        let shm = Arc::new(shm);
        let (shared, at) = (Arc::clone(common), At { op: "all_reduce", ..at });
        shm.interrupt_by(move || shared.abort.received(at));
        let mut column = Group::new(column, machine, world_size / ranks, timeout, common);
        column.add_node_group(&shm);
        Ok(Some(Self { shm, column, place, ranks }))
    }

    /// Returns the communicator of this machine's ranks.
    pub(super) fn node_group(&self) -> &Arc<Shm> {
        &self.shm
    }

    /// All-reduces `buffer`. A mean of the machines' means is the mean of all ranks, since machines have
    /// equally many.
    pub(super) fn all_reduce(&self, buffer: &RawBuffer, op: ReduceOp, at: At) -> Result<()> {
        // SAFETY: the caller of `start` keeps the buffer until the collective has ended.
        unsafe { self.shm.run(Collective::ReduceScatter(op), *buffer) }?;
        let chunk = chunk_range(buffer.len, self.place, self.ranks);
        self.column.reduce(&buffer.part(chunk), op, false, at)?;
        // SAFETY: as above.
        unsafe { self.shm.run(Collective::AllGather, *buffer) }
    }

    /// See [`Communicator::alloc_shared`].
    pub(super) fn alloc_shared(&self, len_bytes: usize) -> Result<Option<SharedMemory>> {
        self.shm.alloc_shared(len_bytes)
    }

    /// See [`Communicator::finalize`].
    pub(super) fn finalize(&self) -> Result<()> {
        self.shm.finalize()
    }
}

/// Returns the number of ranks per machine, if machines can be used. `places`: for each rank its local rank
/// and its local world size.
fn ranks_a_machine(places: &[i64]) -> Option<usize> {
    let ranks = usize::try_from(*places.get(1)?).ok()?;
    let (pairs, _) = places.as_chunks::<2>();
    let several = (2..=MAX_RANKS).contains(&ranks)
        && ranks < pairs.len()
        && pairs.len().is_multiple_of(ranks);
    let mut expected = pairs.iter().enumerate();
    (several && expected.all(|(rank, pair)| *pair == [(rank % ranks) as i64, ranks as i64]))
        .then_some(ranks)
}

#[cfg(test)]
mod tests {
    use super::ranks_a_machine;

    #[test]
    fn machines_are_used_where_all_have_several_ranks_in_order() {
        let two_by_two = [0, 2, 1, 2, 0, 2, 1, 2];
        assert_eq!(ranks_a_machine(&two_by_two), Some(2));
        assert_eq!(ranks_a_machine(&[0, 3, 1, 3, 2, 3, 0, 3, 1, 3, 2, 3]), Some(3));
        assert_eq!(ranks_a_machine(&two_by_two[..4]), None, "one machine");
        assert_eq!(ranks_a_machine(&[0, 1, 0, 1]), None, "one rank each");
        assert_eq!(ranks_a_machine(&[0, 2, 1, 2, 0, 1]), None, "two and one");
        assert_eq!(ranks_a_machine(&[0, 2, 0, 2, 1, 2, 1, 2]), None, "by turns");
        assert_eq!(ranks_a_machine(&[0, 2, 1, 2, 0, 1, 0, 1]), None, "two machines of one");
    }
}
