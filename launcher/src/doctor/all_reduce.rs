//! How long an all-reduce takes, measured with ranks that are threads of this process.

use std::time::{Duration, Instant};

use comm::bootstrap::MemoryStore;
use comm::{BufferMut, CommError, Communicator, ReduceOp, shm};

/// Rounds that are timed; the first one is for warming up.
const ROUNDS: usize = 6;

const TIMEOUT: Duration = Duration::from_secs(30);

/// The median over rounds, of averaging `bytes` of f32 over `ranks` ranks.
///
/// # Errors
/// A sentence: why it does not work.
pub fn over_shared_memory(ranks: usize, bytes: usize) -> Result<Duration, String> {
    let store = MemoryStore::default();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..ranks)
            .map(|rank| {
                let store = &store;
                scope.spawn(move || one_rank(rank, ranks, bytes, store))
            })
            .collect();
        let mut longest = Duration::ZERO;
        for thread in threads {
            let took = thread.join().map_err(|_| "a rank panicked".to_owned())?;
            longest = longest.max(took.map_err(|error| error.to_string())?);
        }
        Ok(longest)
    })
}

fn one_rank(
    rank: usize,
    ranks: usize,
    bytes: usize,
    store: &MemoryStore,
) -> Result<Duration, CommError> {
    // Not through bootstrap, which knows all backends: the launcher links no MPI.
    let communicator = shm::connect(rank, ranks, store, "doctor", TIMEOUT)?;
    let mut gradients = vec![1.0f32; bytes / 4];
    let mut times = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        communicator.barrier()?;
        let started = Instant::now();
        communicator.all_reduce(BufferMut::host(&mut gradients), ReduceOp::Mean)?;
        times.push(started.elapsed());
    }
    communicator.finalize()?;
    times.remove(0);
    times.sort_unstable();
    Ok(times[times.len() / 2])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_of_this_process_average_gradients() {
        assert!(over_shared_memory(2, 1 << 20).unwrap() > Duration::ZERO);
    }
}
