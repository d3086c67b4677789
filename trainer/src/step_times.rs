//! Times of a step and of its parts.

use std::time::Duration;

use comm::{BufferMut, Communicator, ReduceOp};

use crate::Result;
use crate::step::Phases;

/// The time of a step and of its parts, or sums of these over steps.
#[derive(Debug, Clone, Copy, Default)]
pub struct StepTimes {
    /// The whole step.
    pub total: Duration,
    /// Preparing the batch: gathering and augmenting images.
    pub data: Duration,
    /// The phases after that.
    pub phases: Phases,
    /// The part of `phases.comm_exposed` in which ranks wait until the slowest one has computed its
    /// gradients; the mean over ranks.
    pub skew: Duration,
}

impl StepTimes {
    /// Returns the means over CPU ranks of a step's parts; `total` is zero. Collective.
    ///
    /// The last rank to finish backward waits for communication only; the time that other ranks wait longer
    /// than this one is skew.
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

    /// Adds the times of another step.
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

/// Converts a sum of times, which is neither negative nor infinite.
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
