//! Chooses the maximum size of gradient buckets from the measured latency and bandwidth of all-reduces.

use std::time::Instant;

use comm::bucket::AllReduceCost;
use comm::{Communicator, ReduceOp};
use job::config::BucketCap;
use tch::Tensor;
use torch_ext::collective::all_reduce;
use tracing::info;

use crate::Result;
use crate::collective::reduce_values;
use crate::grad_sync::Timing;

/// Numbers of f32 elements of the two all-reduces that are timed.
const LENS: [usize; 2] = [1 << 14, 1 << 20];
/// Number of timed repeats after the first, of which the fastest counts.
const REPEATS: usize = 3;

/// Returns the maximum size of a bucket in bytes: as configured, or with `comm.bucket_cap_mib: auto` by
/// measurement if gradients overlap with backward, and unlimited (one bucket) if they do not. Collective:
/// all ranks return the same.
///
/// `element_bytes`: size of an element as it is sent. `grads`: `[live]` f32 zeros, on which the measurement
/// runs and which remain zero.
///
/// # Errors
/// When a peer is gone or late.
pub fn bucket_cap_bytes(
    cap: BucketCap,
    timing: Timing,
    grads: &Tensor,
    element_bytes: usize,
    communicator: &dyn Communicator,
) -> Result<usize> {
    match cap {
        BucketCap::Mib(mib) => Ok(mib << 20),
        BucketCap::Auto if timing == Timing::Overlapped => {
            let cost = measure(grads, communicator)?;
            let cap = cost.bucket_cap_bytes(grads.numel() * element_bytes);
            if communicator.rank() == 0 {
                info!(
                    "an all-reduce over {} takes {:.3} ms plus 1 ms per {:.2} MiB; using buckets \
                     of at most {:.1} MiB",
                    communicator.backend(),
                    cost.latency_seconds * 1e3,
                    cost.bytes_per_second / 1e3 / f64::from(1 << 20),
                    cap as f64 / f64::from(1 << 20),
                );
            }
            Ok(cap)
        }
        BucketCap::Auto => Ok(usize::MAX),
    }
}

fn measure(grads: &Tensor, communicator: &dyn Communicator) -> Result<AllReduceCost> {
    let lens = LENS.map(|len| len.min(grads.numel()));
    let mut seconds = [f64::INFINITY; 2];
    for (len, least) in lens.iter().zip(&mut seconds) {
        let mut part = grads.narrow(0, 0, *len as i64);
        for _ in 0..=REPEATS {
            communicator.barrier()?;
            let started = Instant::now();
            all_reduce(communicator, &mut part, ReduceOp::Sum)?;
            // On a GPU, reading an element waits for the result.
            part.get(0).double_value(&[]);
            *least = least.min(started.elapsed().as_secs_f64());
        }
    }
    // All ranks take the times of the slowest, for which the others wait, so that they agree.
    let slowest = reduce_values(communicator, grads.device(), &seconds, ReduceOp::Max)?;
    let bytes = lens.map(|len| len * size_of::<f32>());
    Ok(AllReduceCost::fit([(bytes[0], slowest[0]), (bytes[1], slowest[1])]))
}
