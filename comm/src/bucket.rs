//! How gradients are grouped into buckets for communication, as pure functions of sizes and timings.
//!
//! Gradients become ready from the last layer to the first. A bucket is a contiguous range of the
//! flat gradient buffer, laid out in that order, whose all-reduce starts when all of it is ready.

use std::ops::Range;

/// Linear cost model of an all-reduce: a fixed latency plus the length over the bandwidth.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AllReduceCost {
    /// Seconds that an all-reduce takes however short it is.
    pub latency_seconds: f64,
    /// Bytes per second of a long all-reduce, without its latency.
    pub bytes_per_second: f64,
}

impl AllReduceCost {
    /// Fits the model to two measurements, each in bytes and seconds, the shorter buffer first. Where noise
    /// makes the longer one no slower, the bandwidth is taken from the longer one alone, without latency.
    pub fn fit([short, long]: [(usize, f64); 2]) -> Self {
        let (more_bytes, more_seconds) = (long.0.saturating_sub(short.0), long.1 - short.1);
        let bytes_per_second = if more_bytes > 0 && more_seconds > 0.0 {
            more_bytes as f64 / more_seconds
        } else {
            long.0 as f64 / long.1
        };
        let latency_seconds = (short.1 - short.0 as f64 / bytes_per_second).max(0.0);
        Self { latency_seconds, bytes_per_second }
    }

    /// Returns the best cap for the length of a bucket, in bytes, for `total_bytes` of gradients whose
    /// all-reduce overlaps with backward.
    ///
    /// The last bucket overlaps with nothing, so all of its time, length over bandwidth, is exposed; each of
    /// the others adds its latency. The sum, `b / bandwidth + total / b * latency`, is least at
    /// `b = sqrt(total * latency * bandwidth)`. The result is at least 1 MiB, since every bucket also costs
    /// work on the host, and at most `total_bytes`.
    pub fn bucket_cap_bytes(self, total_bytes: usize) -> usize {
        let Self { latency_seconds, bytes_per_second } = self;
        let best = (total_bytes as f64 * latency_seconds * bytes_per_second).sqrt();
        (best as usize).clamp(MIN_BUCKET_BYTES.min(total_bytes), total_bytes)
    }
}

/// Lower limit of [`AllReduceCost::bucket_cap_bytes`].
const MIN_BUCKET_BYTES: usize = 1 << 20;

/// A contiguous part of the flat gradient buffer that is all-reduced at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bucket {
    /// Range of its elements in the flat buffer.
    pub elements: Range<usize>,
    /// Range of its parameters, as positions in the list from which the plan was made.
    pub parameters: Range<usize>,
}

/// Buckets in the order in which they become ready: disjoint, and together covering the whole buffer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BucketPlan {
    buckets: Vec<Bucket>,
}

impl BucketPlan {
    /// Groups parameters into buckets. `lens` has the length of each parameter in elements of
    /// `element_bytes`, in the order in which the gradients become ready: the reverse of registration.
    ///
    /// A bucket is closed before the parameter that would make it longer than `cap_bytes`; a parameter that
    /// is longer by itself gets its own bucket.
    ///
    /// Source: Li et al., PyTorch Distributed, VLDB 2020, section 3.2.3.
    pub fn new(lens: &[usize], element_bytes: usize, cap_bytes: usize) -> Self {
        let mut buckets: Vec<Bucket> = Vec::new();
        let mut end = 0;
        for (parameter, &len) in lens.iter().enumerate() {
            let next = end + len;
            match buckets.last_mut() {
                Some(open) if (next - open.elements.start) * element_bytes <= cap_bytes => {
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

    /// Returns the buckets in the order in which they become ready.
    pub fn buckets(&self) -> &[Bucket] {
        &self.buckets
    }

    /// Returns the number of elements in all buckets.
    pub fn len(&self) -> usize {
        self.buckets.last().map_or(0, |bucket| bucket.elements.end)
    }

    /// Returns whether there is nothing to communicate.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAP_BYTES: usize = 400;

    fn ranges(lens: &[usize]) -> Vec<(Range<usize>, Range<usize>)> {
        let plan = BucketPlan::new(lens, 4, CAP_BYTES);
        plan.buckets().iter().map(|b| (b.elements.clone(), b.parameters.clone())).collect()
    }

    #[test]
    fn buckets_are_disjoint_and_cover_in_order() {
        let lens: Vec<_> = (0..200).map(|i| i * 37 % 90).collect();
        let plan = BucketPlan::new(&lens, 4, CAP_BYTES);
        let (mut element, mut parameter) = (0, 0);
        for bucket in plan.buckets() {
            assert_eq!((bucket.elements.start, bucket.parameters.start), (element, parameter));
            let len: usize = lens[bucket.parameters.clone()].iter().sum();
            assert_eq!(bucket.elements.len(), len);
            (element, parameter) = (bucket.elements.end, bucket.parameters.end);
        }
        assert_eq!((element, parameter), (lens.iter().sum(), lens.len()));
        assert_eq!(plan.len(), element);
    }

    #[test]
    fn no_bucket_of_several_parameters_is_over_its_cap() {
        let lens: Vec<_> = (0..200).map(|i| i * 53 % 120).collect();
        for (elements, parameters) in ranges(&lens) {
            assert!(parameters.len() == 1 || elements.len() * 4 <= CAP_BYTES);
        }
    }

    #[test]
    fn a_bucket_takes_what_goes_in() {
        assert_eq!(ranges(&[20, 60, 20, 20, 20, 20]), [(0..100, 0..3), (100..160, 3..6)]);
    }

    #[test]
    fn a_parameter_over_the_cap_has_its_own_bucket() {
        let expected = [(0..10, 0..1), (10..1010, 1..2), (1010..1030, 2..4)];
        assert_eq!(ranges(&[10, 1000, 10, 10]), expected);
    }

    #[test]
    fn two_measurements_give_latency_and_bandwidth() {
        let at = |bytes: usize| (bytes, 2e-4 + bytes as f64 / 1e9);
        let AllReduceCost { latency_seconds, bytes_per_second } =
            AllReduceCost::fit([at(1 << 16), at(1 << 22)]);
        assert!((latency_seconds - 2e-4).abs() < 1e-9, "{latency_seconds}");
        assert!((bytes_per_second / 1e9 - 1.0).abs() < 1e-6, "{bytes_per_second}");
        // The longer buffer took less time; both are of the same length.
        assert_eq!(AllReduceCost::fit([(10, 3.0), (100, 2.0)]).bytes_per_second, 50.0);
        assert_eq!(AllReduceCost::fit([(10, 1.0), (10, 1.0)]).bytes_per_second, 10.0);
    }

    #[test]
    fn the_best_bucket_takes_the_least_beside_backward() {
        let speed = AllReduceCost { latency_seconds: 1e-4, bytes_per_second: 1e9 };
        let total = 45 << 20;
        let seconds =
            |cap: f64| cap / speed.bytes_per_second + total as f64 / cap * speed.latency_seconds;
        let best = speed.bucket_cap_bytes(total);
        for other in [best as f64 * 0.8, best as f64 * 1.25] {
            assert!(seconds(best as f64) < seconds(other), "{best} is worse than {other}");
        }
    }

    #[test]
    fn buckets_are_neither_tiny_nor_more_than_all() {
        let free = AllReduceCost { latency_seconds: 0.0, bytes_per_second: 1e9 };
        assert_eq!(free.bucket_cap_bytes(45 << 20), 1 << 20);
        assert_eq!(free.bucket_cap_bytes(1000), 1000);
        let slow = AllReduceCost { latency_seconds: 1.0, bytes_per_second: 1e9 };
        assert_eq!(slow.bucket_cap_bytes(45 << 20), 45 << 20);
        assert_eq!(slow.bucket_cap_bytes(0), 0);
    }

    #[test]
    fn no_parameters_make_no_buckets() {
        assert!(BucketPlan::new(&[], 4, CAP_BYTES).is_empty());
    }
}
