//! How long a step took, and where.

use std::time::Duration;

use comm::{BufferMut, Communicator, ReduceOp};

use crate::Result;
use crate::step::Phases;

/// How long a step took, and parts of it.
#[derive(Debug, Clone, Copy, Default)]
pub struct StepTimes {
    /// The whole step.
    pub total: Duration,
    /// Making the batch.
    pub data: Duration,
    /// What follows it.
    pub phases: Phases,
    /// Of waiting for gradients: until the slowest rank had its own, the mean over ranks.
    pub skew: Duration,
}

impl StepTimes {
    /// The means over CPU ranks of a step's parts, without its total. Collective.
    ///
    /// The rank that comes last waits for communication alone; what others wait for longer than it
    /// is skew.
    ///
    /// # Errors
    /// When a peer is gone or late.
    pub fn over_ranks(
        communicator: &dyn Communicator,
        data: Duration,
        phases: Phases,
    ) -> Result<Self> {
        let Phases { forward, backward, comm_exposed, optimizer } = phases;
        let mut means = [data, forward, backward, comm_exposed, optimizer].map(|t| t.as_secs_f64());
        let mut shortest_wait = [comm_exposed.as_secs_f64()];
        communicator.all_reduce(BufferMut::host(&mut means), ReduceOp::Mean)?;
        communicator.all_reduce(BufferMut::host(&mut shortest_wait), ReduceOp::Min)?;
        let [data, forward, backward, comm_exposed, optimizer] = means.map(duration);
        Ok(Self {
            total: Duration::ZERO,
            data,
            phases: Phases { forward, backward, comm_exposed, optimizer },
            skew: comm_exposed.saturating_sub(duration(shortest_wait[0])),
        })
    }

    /// Adds those of another step.
    pub fn add(&mut self, other: Self) {
        let (mine, its) = (&mut self.phases, other.phases);
        for (sum, part) in [
            (&mut self.total, other.total),
            (&mut self.data, other.data),
            (&mut self.skew, other.skew),
            (&mut mine.forward, its.forward),
            (&mut mine.backward, its.backward),
            (&mut mine.comm_exposed, its.comm_exposed),
            (&mut mine.optimizer, its.optimizer),
        ] {
            *sum += part;
        }
    }
}

/// Sums of times are neither negative nor infinite.
fn duration(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use comm::bootstrap::MemoryStore;

    use super::*;

    #[test]
    fn what_a_rank_waits_longer_than_the_last_one_is_skew() {
        let (store, timeout) = (MemoryStore::default(), Duration::from_secs(60));
        std::thread::scope(|scope| {
            for (rank, wait_ms) in [30, 10].into_iter().enumerate() {
                let store = &store;
                scope.spawn(move || {
                    let shm = comm::shm::connect(rank, 0..2, store, "test", timeout).unwrap();
                    let phases = Phases {
                        comm_exposed: Duration::from_millis(wait_ms),
                        ..Phases::default()
                    };
                    let data = Duration::from_millis(2 + 2 * rank as u64);
                    let times = StepTimes::over_ranks(&shm, data, phases).unwrap();
                    assert_eq!(times.phases.comm_exposed, Duration::from_millis(20));
                    assert_eq!(times.skew, Duration::from_millis(10));
                    assert_eq!(times.data, Duration::from_millis(3));
                });
            }
        });
    }
}
