//! Simulates when backward's gradients are ready, when they are communicated, and how long a step waits for
//! that. Pure.

use comm::bucket::BucketPlan;

use super::compute::Compute;
use super::network::Layer;

/// How gradients are communicated.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Communication {
    /// Maximum bytes of a bucket.
    pub bucket_cap_bytes: usize,
    /// Whether buckets are communicated during backward rather than after it.
    pub overlap: bool,
    /// Share of its speed that a rank loses while it communicates.
    pub slowdown: f64,
}

/// Times of a step, in seconds from the beginning of backward.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Timeline {
    /// When the rank's own gradients are all ready.
    pub backward_end: f64,
    /// When the gradients of all ranks are reduced.
    pub communication_end: f64,
    /// Total duration of all collectives.
    pub communication: f64,
    /// Number of buckets, each with one collective.
    pub buckets: usize,
}

impl Timeline {
    /// Returns how long communication lasts after the end of backward.
    pub fn exposed(&self) -> f64 {
        (self.communication_end - self.backward_end).max(0.0)
    }
}

/// Simulates backward through `layers`, given in the order of the forward pass. Backward's time is divided
/// among them by their multiply-accumulates. `all_reduce` returns the seconds for a number of bytes.
pub fn simulate(
    layers: &[Layer],
    compute: &Compute,
    communication: &Communication,
    all_reduce: impl Fn(f64) -> f64,
) -> Timeline {
    let Communication { bucket_cap_bytes, overlap, slowdown } = *communication;
    // Gradients become ready from the last layer to the first, and lie in memory in that order.
    let lens: Vec<usize> =
        layers.iter().rev().flat_map(|layer| layer.parameters.iter().rev().copied()).collect();
    let plan = BucketPlan::new(&lens, size_of::<f32>(), bucket_cap_bytes);
    let seconds: Vec<f64> = plan
        .buckets()
        .iter()
        .map(|bucket| all_reduce((bucket.elements.len() * size_of::<f32>()) as f64))
        .collect();
    let all_work: f64 = layers.iter().map(|layer| layer.macs).sum();
    let mut timeline = Timeline {
        communication: seconds.iter().sum(),
        buckets: seconds.len(),
        ..Timeline::default()
    };
    let (mut now, mut busy_until, mut parameters, mut next) = (0.0, 0.0, 0, 0);
    for layer in layers.iter().rev() {
        now = worked(now, compute.backward * layer.macs / all_work, busy_until, slowdown);
        parameters += layer.parameters.len();
        while overlap && next < seconds.len() && plan.buckets()[next].parameters.end <= parameters {
            busy_until = f64::max(now, busy_until) + seconds[next];
            next += 1;
        }
    }
    timeline.backward_end = now;
    let left: f64 = seconds[next..].iter().sum();
    timeline.communication_end = f64::max(now, busy_until) + left;
    timeline
}

/// Returns when work of `seconds` is done, if it is slowed down until `busy_until`.
fn worked(now: f64, seconds: f64, busy_until: f64, slowdown: f64) -> f64 {
    let done_while_busy = (busy_until - now).max(0.0) * (1.0 - slowdown);
    if done_while_busy >= seconds {
        return now + seconds / (1.0 - slowdown);
    }
    f64::max(now, busy_until) + seconds - done_while_busy
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Four layers of equal duration, with 100 parameters each.
    fn layers() -> Vec<Layer> {
        vec![Layer { macs: 1.0, parameters: vec![100] }; 4]
    }

    const COMPUTE: Compute = Compute { forward: 2.0, backward: 4.0, rest: 0.0 };

    /// Simulates buckets of `bucket_layers` layers, whose all-reduce takes `each` seconds per layer.
    fn run(bucket_layers: usize, overlap: bool, slowdown: f64, each: f64) -> Timeline {
        let bucket_cap_bytes = bucket_layers * 400;
        let communication = Communication { bucket_cap_bytes, overlap, slowdown };
        simulate(&layers(), &COMPUTE, &communication, |bytes| each * bytes / 400.0)
    }

    #[test]
    fn only_the_last_bucket_is_exposed_while_communication_is_faster_than_backward() {
        let timeline = run(1, true, 0.0, 0.5);
        assert_eq!((timeline.backward_end, timeline.exposed()), (4.0, 0.5));
        assert_eq!((timeline.buckets, timeline.communication), (4, 2.0));
        // A larger bucket starts later and has more left at the end.
        assert_eq!(run(2, true, 0.0, 0.5).exposed(), 1.0);
        assert_eq!(run(4, true, 0.0, 0.5).exposed(), 2.0);
    }

    #[test]
    fn communication_that_is_slower_than_backward_queues() {
        // The first starts at 1, and there are 4 of 2 seconds.
        assert_eq!(run(1, true, 0.0, 2.0).communication_end, 9.0);
    }

    #[test]
    fn without_overlap_everything_is_exposed() {
        assert_eq!(run(1, false, 0.5, 0.5).exposed(), 2.0);
        assert_eq!(run(1, false, 0.5, 0.5).backward_end, 4.0);
    }

    #[test]
    fn where_communication_takes_the_processor_overlap_gains_nothing() {
        let overlapped = run(1, true, 1.0, 0.5);
        assert_eq!(overlapped.communication_end, run(1, false, 1.0, 0.5).communication_end);
        let half = run(1, true, 0.5, 0.5);
        assert_eq!(half.backward_end, 4.0 + 3.0 * 0.25);
    }
}
