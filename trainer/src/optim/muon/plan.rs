//! Assigns matrices to the ranks that orthogonalize them: a pure function of their shapes.

use std::cmp::Reverse;
use std::ops::Range;

/// The owner of each matrix, and the range of its result in the buffer that is gathered over ranks. The
/// buffer has one chunk per rank, each as long as the longest share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Plan {
    owners: Vec<usize>,
    ranges: Vec<Range<usize>>,
    len: usize,
}

impl Plan {
    /// Assigns matrices of these shapes to ranks greedily: in the order of decreasing cost, each to the
    /// rank with the least work so far.
    pub fn new(shapes: &[[usize; 2]], world_size: usize) -> Self {
        let mut by_cost: Vec<_> = (0..shapes.len()).collect();
        by_cost.sort_by_key(|&index| Reverse(cost(shapes[index])));
        let (mut work, mut filled) = (vec![0; world_size], vec![0; world_size]);
        let (mut owners, mut starts) = (vec![0; shapes.len()], vec![0; shapes.len()]);
        for index in by_cost {
            let rank = (0..world_size).min_by_key(|&rank| (work[rank], rank)).unwrap_or(0);
            (owners[index], starts[index]) = (rank, filled[rank]);
            work[rank] += cost(shapes[index]);
            filled[rank] += shapes[index].iter().product::<usize>();
        }
        let chunk = filled.into_iter().max().unwrap_or(0);
        let ranges = shapes.iter().enumerate().map(|(index, shape)| {
            let start = owners[index] * chunk + starts[index];
            start..start + shape.iter().product::<usize>()
        });
        Self { ranges: ranges.collect(), owners, len: chunk * world_size }
    }

    /// Returns the rank that orthogonalizes matrix `index`.
    pub fn owner(&self, index: usize) -> usize {
        self.owners[index]
    }

    /// Returns the range of the result of matrix `index` in the buffer.
    pub fn range(&self, index: usize) -> Range<usize> {
        self.ranges[index].clone()
    }

    /// Returns the number of elements of the buffer.
    pub fn len(&self) -> usize {
        self.len
    }
}

/// Returns the multiply-adds of a Newton-Schulz iteration on a matrix with sides `short <= long`: two
/// products with a `[short, long]` matrix and one of `[short, short]` matrices.
fn cost([rows, columns]: [usize; 2]) -> u64 {
    let (short, long) = (rows.min(columns) as u64, rows.max(columns) as u64);
    short * short * (2 * long + short)
}

#[cfg(test)]
mod tests {
    use super::*;
    use comm::communicator::chunk_range;

    const SHAPES: [[usize; 2]; 6] =
        [[64, 27], [64, 576], [128, 576], [128, 1152], [3, 5], [256, 64]];

    #[test]
    fn every_result_lies_in_its_owners_chunk_and_overlaps_no_other() {
        for world_size in 1..=8 {
            let plan = Plan::new(&SHAPES, world_size);
            for (index, shape) in SHAPES.iter().enumerate() {
                let chunk = chunk_range(plan.len(), plan.owner(index), world_size);
                let range = plan.range(index);
                assert_eq!(range.len(), shape[0] * shape[1]);
                assert!(chunk.start <= range.start && range.end <= chunk.end, "{plan:?}");
                for other in (0..SHAPES.len()).filter(|other| *other != index) {
                    let other = plan.range(other);
                    assert!(range.end <= other.start || other.end <= range.start, "{plan:?}");
                }
            }
        }
    }

    #[test]
    fn no_rank_has_more_than_twice_its_share() {
        for world_size in 2..=3 {
            let plan = Plan::new(&SHAPES, world_size);
            let work = |rank| {
                let owned = (0..SHAPES.len()).filter(|index| plan.owner(*index) == rank);
                owned.map(|index| cost(SHAPES[index])).sum::<u64>()
            };
            let (total, largest) =
                (SHAPES.into_iter().map(cost).sum::<u64>(), SHAPES.into_iter().map(cost).max());
            let fair = (total / world_size as u64).max(largest.unwrap());
            assert!((0..world_size).all(|rank| work(rank) <= 2 * fair), "{plan:?}");
        }
    }
}
