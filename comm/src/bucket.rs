//! How gradients are grouped for communication. Pure: sizes in, plan out.
//!
//! Gradients become ready from the last layer to the first. A bucket is a contiguous range of the
//! flat gradient buffer, laid out in that order, whose all-reduce starts when all of it is ready.

use std::ops::Range;

/// What [`BucketPlan::new`] groups by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BucketCaps {
    /// Most bytes of a bucket; a single longer parameter gets a bucket of its own.
    pub cap_bytes: usize,
    /// Most bytes of the first bucket, smaller so that communication starts early; `cap_bytes` for
    /// no difference.
    pub first_cap_bytes: usize,
}

impl BucketCaps {
    /// PyTorch's: 25 MiB, and 1 MiB for the first.
    pub const PYTORCH: Self = Self { cap_bytes: 25 << 20, first_cap_bytes: 1 << 20 };
}

/// One bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bucket {
    /// Its elements in the flat buffer.
    pub elements: Range<usize>,
    /// Its parameters, as positions in the list that the plan was made from.
    pub parameters: Range<usize>,
}

/// Buckets in the order in which they become ready: disjoint, and together the whole buffer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BucketPlan {
    buckets: Vec<Bucket>,
}

impl BucketPlan {
    /// Groups parameters, whose `lens` are in elements of `element_bytes` each and in the order in
    /// which their gradients become ready: the reverse of registration.
    ///
    /// A bucket is closed before the parameter that would take it over its cap.
    ///
    /// Source: Li et al., PyTorch Distributed, VLDB 2020, section 3.2.3.
    pub fn new(lens: &[usize], element_bytes: usize, caps: BucketCaps) -> Self {
        let mut buckets: Vec<Bucket> = Vec::new();
        let mut end = 0;
        for (parameter, &len) in lens.iter().enumerate() {
            let cap = if buckets.len() <= 1 { caps.first_cap_bytes } else { caps.cap_bytes };
            let next = end + len;
            match buckets.last_mut() {
                Some(open) if (next - open.elements.start) * element_bytes <= cap => {
                    open.elements.end = next;
                    open.parameters.end = parameter + 1;
                }
                _ => buckets
                    .push(Bucket { elements: end..next, parameters: parameter..parameter + 1 }),
            }
            end = next;
        }
        Self { buckets }
    }

    /// The buckets, in the order in which they become ready.
    pub fn buckets(&self) -> &[Bucket] {
        &self.buckets
    }

    /// The bucket of a parameter, given by its position in the list that the plan was made from.
    pub fn bucket_of(&self, parameter: usize) -> Option<usize> {
        let after = self.buckets.partition_point(|bucket| bucket.parameters.end <= parameter);
        (after < self.buckets.len()).then_some(after)
    }

    /// Elements of all buckets.
    pub fn len(&self) -> usize {
        self.buckets.last().map_or(0, |bucket| bucket.elements.end)
    }

    /// Whether there is nothing to communicate.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAPS: BucketCaps = BucketCaps { cap_bytes: 400, first_cap_bytes: 100 };

    fn ranges(lens: &[usize]) -> Vec<(Range<usize>, Range<usize>)> {
        let plan = BucketPlan::new(lens, 4, CAPS);
        plan.buckets().iter().map(|b| (b.elements.clone(), b.parameters.clone())).collect()
    }

    #[test]
    fn buckets_are_disjoint_and_cover_in_order() {
        let lens: Vec<_> = (0..200).map(|i| i * 37 % 90).collect();
        let plan = BucketPlan::new(&lens, 4, CAPS);
        let (mut element, mut parameter) = (0, 0);
        for (index, bucket) in plan.buckets().iter().enumerate() {
            assert_eq!((bucket.elements.start, bucket.parameters.start), (element, parameter));
            let len: usize = lens[bucket.parameters.clone()].iter().sum();
            assert_eq!(bucket.elements.len(), len);
            assert!(bucket.parameters.clone().all(|p| plan.bucket_of(p) == Some(index)));
            (element, parameter) = (bucket.elements.end, bucket.parameters.end);
        }
        assert_eq!((element, parameter), (lens.iter().sum(), lens.len()));
        assert_eq!(plan.len(), element);
        assert_eq!(plan.bucket_of(lens.len()), None);
    }

    #[test]
    fn no_bucket_of_several_parameters_is_over_its_cap() {
        let lens: Vec<_> = (0..200).map(|i| i * 53 % 120).collect();
        for (index, (elements, parameters)) in ranges(&lens).into_iter().enumerate() {
            let cap = if index == 0 { 100 } else { 400 };
            assert!(parameters.len() == 1 || elements.len() * 4 <= cap);
        }
    }

    #[test]
    fn the_first_bucket_is_smaller() {
        assert_eq!(ranges(&[20, 20, 20, 20, 20, 20]), [(0..20, 0..1), (20..120, 1..6)]);
    }

    #[test]
    fn a_parameter_over_the_cap_has_its_own_bucket() {
        let expected = [(0..10, 0..1), (10..1010, 1..2), (1010..1030, 2..4)];
        assert_eq!(ranges(&[10, 1000, 10, 10]), expected);
    }

    #[test]
    fn no_parameters_make_no_buckets() {
        assert!(BucketPlan::new(&[], 4, CAPS).is_empty());
        assert_eq!(BucketPlan::default().bucket_of(0), None);
    }
}
