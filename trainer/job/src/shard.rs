//! Assignment of samples to steps and ranks.
//!
//! There is one global order: an epoch's permutation depends on the seed and the epoch only, a global batch
//! is a slice of it, and each rank takes its slice of that. So the same global batch size means the same
//! samples per step on any number of ranks, each exactly once per epoch. All functions are pure.

use std::ops::Range;

use crate::rng::{self, Purpose, Stream};

/// Returns the order in which the `len` samples are visited in `epoch`: a permutation of `0..len`.
///
/// Depends on neither world size nor batch size. `len` must be below 2^32.
pub fn epoch_order(len: usize, seed: u64, epoch: usize) -> Vec<u32> {
    assert!(u32::try_from(len).is_ok(), "{len} samples are more than u32 can index");
    let stream = Stream::new(Purpose::Order, epoch as u64);
    let mut order: Vec<u32> = (0..len as u32).collect();
    for last in (1..len).rev() {
        let other = rng::below(rng::bits(seed, stream, last as u32, 0), last as u64 + 1);
        order.swap(last, other as usize);
    }
    order
}

/// A global batch and this rank's part of it, as ranges into the epoch's order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Samples of all ranks together; never empty.
    pub global: Range<usize>,
    /// Samples of this rank, within `global`; empty if a last batch has fewer samples than ranks.
    pub local: Range<usize>,
}

/// Samples of one forward and backward pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Microbatch {
    /// Samples of this rank, as a range into the epoch's order; may be empty.
    pub local: Range<usize>,
    /// Number of samples of all ranks together.
    pub global_len: usize,
}

impl Batch {
    /// Splits this rank's part into microbatches of at most `batch_size_per_rank` samples, in order and as
    /// evenly as possible. Their number is the same on every rank, so that each can contain collectives.
    pub fn microbatches(&self, batch_size_per_rank: usize, world_size: usize) -> Vec<Microbatch> {
        let count = self.global.len().div_ceil(batch_size_per_rank * world_size);
        let samples = |of_rank: Range<usize>, index| {
            let part = balanced(of_rank.len(), index, count);
            of_rank.start + part.start..of_rank.start + part.end
        };
        let of_rank = |rank| balanced(self.global.len(), rank, world_size);
        let global_len =
            |index| (0..world_size).map(|rank| samples(of_rank(rank), index).len()).sum();
        let microbatch = |index| Microbatch {
            local: samples(self.local.clone(), index),
            global_len: global_len(index),
        };
        (0..count).map(microbatch).collect()
    }
}

/// Returns the global batch that starts at sample `offset` of an epoch of `len` samples; `None` at the
/// epoch's end.
///
/// The batch has `global_batch` samples, or what is left of the epoch. Ranks share them in order, as evenly
/// as possible: the first ranks take one more. After a resume with another world size, continue at the old
/// offset: no sample is left out or seen twice.
pub fn next_batch(
    len: usize,
    offset: usize,
    global_batch: usize,
    rank: usize,
    world_size: usize,
) -> Option<Batch> {
    assert!(global_batch > 0, "a batch has at least one sample");
    if offset >= len {
        return None;
    }
    let size = global_batch.min(len - offset);
    let local = balanced(size, rank, world_size);
    Some(Batch { global: offset..offset + size, local: offset + local.start..offset + local.end })
}

/// Returns the number of global batches in an epoch of `len` samples, the last, smaller one included.
pub fn steps_per_epoch(len: usize, global_batch: usize) -> usize {
    len.div_ceil(global_batch)
}

/// Returns the test images that this rank evaluates: contiguous, each on exactly one rank.
pub fn evaluation_shard(len: usize, rank: usize, world_size: usize) -> Range<usize> {
    balanced(len, rank, world_size)
}

/// Returns this rank's part of `0..len`, of which the first `len % world_size` ranks take one more.
fn balanced(len: usize, rank: usize, world_size: usize) -> Range<usize> {
    assert!(rank < world_size, "rank {rank} is not below the world size {world_size}");
    let (each, more) = (len / world_size, len % world_size);
    let start = rank * each + rank.min(more);
    start..start + each + usize::from(rank < more)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the global batches of an epoch, checked to be disjoint and to cover the epoch.
    fn epoch(len: usize, per_rank: usize, world_size: usize) -> Vec<Range<usize>> {
        let (mut offset, mut batches) = (0, Vec::new());
        while let Some(first) = next_batch(len, offset, per_rank * world_size, 0, world_size) {
            let mut at = first.global.start;
            for rank in 0..world_size {
                let batch =
                    next_batch(len, offset, per_rank * world_size, rank, world_size).unwrap();
                assert_eq!(batch.global, first.global);
                assert_eq!(batch.local.start, at);
                assert!(batch.local.len() <= per_rank);
                at = batch.local.end;
            }
            assert_eq!(at, first.global.end);
            assert_eq!(first.global.start, offset);
            offset = first.global.end;
            batches.push(first.global);
        }
        assert_eq!(offset, len);
        batches
    }

    #[test]
    fn an_epoch_is_a_permutation() {
        for len in [0, 1, 2, 100, 50_000] {
            let mut order = epoch_order(len, 3, 1);
            order.sort_unstable();
            assert_eq!(order, (0..len as u32).collect::<Vec<_>>());
        }
    }

    #[test]
    fn epochs_and_seeds_give_different_orders() {
        let order = epoch_order(1000, 0, 0);
        assert_eq!(order, epoch_order(1000, 0, 0));
        assert_ne!(order, epoch_order(1000, 0, 1));
        assert_ne!(order, epoch_order(1000, 1, 0));
    }

    #[test]
    fn every_position_is_equally_likely() {
        let n = 6;
        let mut seen = vec![0f64; n * n];
        for epoch in 0..6000 {
            for (position, sample) in epoch_order(n, 5, epoch).into_iter().enumerate() {
                seen[position * n + sample as usize] += 1.0;
            }
        }
        let worst = seen.iter().map(|count| (count - 1000.0).abs()).fold(0.0, f64::max);
        assert!(worst < 130.0, "{worst} off 1000, of standard deviation 29");
    }

    #[test]
    fn the_order_is_pinned_so_that_old_runs_can_be_resumed() {
        assert_eq!(epoch_order(12, 42, 7), [4, 11, 8, 0, 5, 1, 6, 3, 7, 9, 10, 2]);
    }

    #[test]
    fn shards_are_disjoint_and_cover() {
        for len in [1, 2, 7, 63, 64, 65, 1000] {
            for per_rank in [1, 3, 64] {
                for world_size in 1..=9 {
                    let batches = epoch(len, per_rank, world_size);
                    assert_eq!(batches.len(), steps_per_epoch(len, per_rank * world_size));
                }
            }
        }
    }

    #[test]
    fn the_same_global_batch_holds_the_same_samples_on_any_number_of_ranks() {
        let on_one_rank = epoch(1003, 64, 1);
        for world_size in [2, 4, 8] {
            assert_eq!(epoch(1003, 64 / world_size, world_size), on_one_rank);
        }
    }

    #[test]
    fn a_last_batch_is_divided_evenly_and_first_ranks_take_one_more() {
        let sizes = |len, world_size: usize| -> Vec<usize> {
            let batch = |rank| next_batch(len, 0, 64 * world_size, rank, world_size).unwrap();
            (0..world_size).map(|rank| batch(rank).local.len()).collect()
        };
        assert_eq!(sizes(10, 4), [3, 3, 2, 2]);
        assert_eq!(sizes(2, 4), [1, 1, 0, 0]);
        assert_eq!(sizes(256, 4), [64; 4]);
    }

    #[test]
    fn microbatches_cover_a_ranks_part_and_are_as_many_on_every_rank() {
        let (per_rank, accum) = (8, 3);
        for world_size in 1..=5 {
            for len in 1..=per_rank * accum * world_size {
                let of_rank = |rank| {
                    let whole = per_rank * accum * world_size;
                    let batch = next_batch(len, 0, whole, rank, world_size).unwrap();
                    (batch.clone(), batch.microbatches(per_rank, world_size))
                };
                let all: Vec<_> = (0..world_size).map(of_rank).collect();
                let count = all[0].1.len();
                assert!(count <= accum);
                for (batch, microbatches) in &all {
                    let local = microbatches.iter().flat_map(|part| part.local.clone());
                    assert!(local.eq(batch.local.clone()));
                    assert_eq!(microbatches.len(), count);
                    assert!(microbatches.iter().all(|part| part.local.len() <= per_rank));
                }
                for index in 0..count {
                    let together: usize = all.iter().map(|(_, m)| m[index].local.len()).sum();
                    assert!(all.iter().all(|(_, m)| m[index].global_len == together));
                }
            }
        }
    }

    #[test]
    fn a_resume_with_another_world_size_goes_on_where_the_epoch_stopped() {
        let batch = next_batch(1000, 384, 128, 0, 2).unwrap();
        assert_eq!(batch, Batch { global: 384..512, local: 384..448 });
        let batch = next_batch(1000, 384, 192, 2, 3).unwrap();
        assert_eq!(batch, Batch { global: 384..576, local: 512..576 });
        assert_eq!(next_batch(1000, 1000, 128, 0, 2), None);
    }

    #[test]
    fn evaluation_counts_every_image_once() {
        for len in [0, 1, 5, 10_000] {
            for world_size in 1..=8 {
                let shards = (0..world_size).map(|rank| evaluation_shard(len, rank, world_size));
                let all: Vec<usize> = shards.flatten().collect();
                assert_eq!(all, (0..len).collect::<Vec<_>>());
            }
        }
    }
}
