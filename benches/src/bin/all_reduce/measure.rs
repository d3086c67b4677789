//! Rounds in which every backend runs once, so that disturbances of the machine affect all alike.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use comm::{BufferMut, Communicator, Element, ReduceOp, SharedMemory};

use crate::Args;
use crate::ranks::Group;

/// Timings of one backend at one size.
pub struct Series {
    /// The backend, and how it was used.
    pub name: &'static str,
    /// Length of the buffer in bytes.
    pub bytes: usize,
    /// Time of the slowest rank in each round, in seconds.
    pub seconds: Vec<f64>,
}

/// Element types whose zero is all zero bits.
pub trait Zero: Element {
    /// Zero.
    const ZERO: Self;
    /// Sums `send` over all ranks into `receive` by MPI's own blocking call; returns false where MPI lacks
    /// the type.
    #[cfg(feature = "mpi")]
    fn raw_mpi(send: &[Self], receive: &mut [Self]) -> bool;
}

macro_rules! zero {
    ($type:ty, $zero:expr, $raw:expr) => {
        impl Zero for $type {
            const ZERO: Self = $zero;
            #[cfg(feature = "mpi")]
            fn raw_mpi(send: &[Self], receive: &mut [Self]) -> bool {
                $raw(send, receive)
            }
        }
    };
}

zero!(f32, 0.0, raw_sum);
zero!(f64, 0.0, raw_sum);
zero!(i64, 0, raw_sum);
// MPI has no bf16.
zero!(half::bf16, half::bf16::ZERO, |_: &[Self], _: &mut [Self]| false);

#[cfg(feature = "mpi")]
fn raw_sum<T: mpi::datatype::Equivalence>(send: &[T], receive: &mut [T]) -> bool {
    use mpi::traits::CommunicatorCollectives as _;
    let world = mpi::topology::SimpleCommunicator::world();
    world.all_reduce_into(send, receive, mpi::collective::SystemOperation::sum());
    true
}

/// One way to reduce a buffer: its name, and a closure that returns whether it ran.
type Way<'a> = (&'static str, Box<dyn FnMut() -> Result<bool> + 'a>);

/// Measures all sizes. Collective; all ranks return the same times.
pub fn measure<T: Zero>(group: &Group, args: &Args) -> Result<Vec<Series>> {
    let longest = args.bytes.iter().copied().max().unwrap_or(0);
    let alloc = |over: &Arc<dyn Communicator>| {
        over.alloc_shared(longest)?
            .context("ranks share no memory: there is only one, or they are on several machines")
    };
    let sharing = group.shm.as_ref().or(group.hierarchical.as_ref());
    let shared = sharing.map(alloc).transpose()?;
    let mut all = Vec::new();
    for &bytes in &args.bytes {
        all.extend(measure_size::<T>(group, args, bytes / size_of::<T>(), shared.as_ref())?);
    }
    Ok(all)
}

fn measure_size<T: Zero>(
    group: &Group,
    args: &Args,
    len: usize,
    shared: Option<&SharedMemory>,
) -> Result<Vec<Series>> {
    let [mut staged, mut over_mpi] = [(); 2].map(|()| vec![T::ZERO; len]);
    #[cfg(feature = "mpi")]
    let (send, mut receive) = (vec![T::ZERO; len], vec![T::ZERO; len]);
    let mut ways: Vec<Way<'_>> = Vec::new();
    // SAFETY: the memory is long enough for the longest size and aligned to a page, and only one of the
    // ways below uses it.
    let in_segment = shared.map(|shared| unsafe {
        std::slice::from_raw_parts_mut(shared.ptr.cast::<T>().as_ptr(), len)
    });
    match (&group.shm, &group.hierarchical, in_segment) {
        (Some(shm), _, Some(in_segment)) => {
            ways.push(("shm in place", Box::new(|| sum(&**shm, in_segment))));
            ways.push(("shm staged", Box::new(|| sum(&**shm, &mut staged))));
        }
        (None, Some(over), Some(in_segment)) => {
            ways.push(("hierarchical", Box::new(|| sum(&**over, in_segment))));
            ways.push(("the same, staged", Box::new(|| sum(&**over, &mut staged))));
        }
        _ => {}
    }
    if let Some(mpi) = &group.mpi {
        ways.push(("mpi backend", Box::new(|| sum(&**mpi, &mut over_mpi))));
    }
    #[cfg(feature = "mpi")]
    if group.mpi.is_some() {
        ways.push(("MPI_Allreduce", Box::new(|| Ok(T::raw_mpi(&send, &mut receive)))));
    }
    let bytes = len * size_of::<T>();
    let mut series: Vec<_> =
        ways.iter().map(|(name, _)| Series { name, bytes, seconds: Vec::new() }).collect();
    for round in 0..args.warmup + args.rounds {
        for ((_, way), series) in ways.iter_mut().zip(&mut series) {
            group.any().barrier()?;
            let start = Instant::now();
            let ran = way()?;
            let mut slowest = [start.elapsed().as_secs_f64()];
            group.any().all_reduce(BufferMut::host(&mut slowest), ReduceOp::Max)?;
            if ran && round >= args.warmup {
                series.seconds.push(slowest[0]);
            }
        }
    }
    series.retain(|series| !series.seconds.is_empty());
    Ok(series)
}

fn sum<T: Element>(comm: &dyn Communicator, buffer: &mut [T]) -> Result<bool> {
    comm.all_reduce(BufferMut::host(buffer), ReduceOp::Sum)?;
    Ok(true)
}
