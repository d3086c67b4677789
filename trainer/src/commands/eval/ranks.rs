//! Ranks that are threads of one process.

use std::thread;

use comm::bootstrap::{MemoryStore, Store};
use comm::env::{StartedBy, World};

use crate::{Result, TrainError};

/// Returns the world as rank `rank` of `count` sees it.
pub(super) fn world(rank: usize, count: usize) -> World {
    World {
        rank,
        world_size: count,
        local_rank: rank,
        local_world_size: count,
        started_by: StartedBy::Launcher,
    }
}

/// Runs `body` as each of `count` ranks, in threads, and returns the result of rank 0.
///
/// # Errors
/// The error of the first rank that failed by itself rather than because a peer failed.
pub(super) fn run<T: Send>(
    count: usize,
    body: impl Fn(World, &dyn Store) -> Result<T> + Sync,
) -> Result<T> {
    let (store, body) = (MemoryStore::default(), &body);
    let ends: Vec<Result<T>> = thread::scope(|scope| {
        let ranks: Vec<_> = (0..count)
            .map(|rank| {
                let store = &store;
                scope.spawn(move || body(world(rank, count), store))
            })
            .collect();
        let ends = ranks.into_iter().map(thread::ScopedJoinHandle::join);
        ends.map(|end| end.unwrap_or_else(|panic| Err(TrainError::from_panic(&*panic)))).collect()
    });
    let (mut done, mut failed): (Vec<_>, Vec<_>) = ends.into_iter().partition(Result::is_ok);
    let is_own = |end: &Result<T>| !matches!(end, Err(TrainError::Comm(_)));
    let cause = failed.iter().position(is_own).unwrap_or(0);
    match failed.is_empty() {
        true => done.swap_remove(0),
        false => failed.swap_remove(cause),
    }
}
