//! `all_reduce` between two ranks over shared memory, by size, dtype, and whether the buffer lies in a shared
//! allocation. The binary `all_reduce`, started by `mpirun`, compares it with MPI.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::cell::Cell;
use std::time::{Duration, Instant};

use comm::{BufferMut, Communicator, Element, ReduceOp};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use support::on_ranks;

const RANKS: usize = 2;
const BYTES: [usize; 5] = [1 << 10, 32 << 10, 1 << 20, 4 << 20, 16 << 20];

/// Number of calls and their total time, of the sample with the most calls.
type Longest = Cell<(u64, Duration)>;

fn all_reduce(c: &mut Criterion) {
    dtype::<f32>(c, "f32", 0.0);
    dtype::<half::bf16>(c, "bf16", half::bf16::ZERO);
}

fn dtype<T: Element + Send + Sync>(c: &mut Criterion, name: &str, zero: T) {
    for in_segment in [true, false] {
        let place = if in_segment { "in-place" } else { "staged" };
        let mut group = c.benchmark_group(format!("all_reduce/shm-{place}/{name}"));
        for bytes in BYTES {
            let longest = Longest::default();
            // Criterion's throughput is what nccl-tests calls algorithm bandwidth.
            group.throughput(Throughput::Bytes(bytes as u64));
            group.bench_with_input(BenchmarkId::from_parameter(bytes), &bytes, |b, &bytes| {
                b.iter_custom(|calls| {
                    let time = on_ranks(RANKS, |shm| timed(&*shm, calls, bytes, in_segment, zero));
                    if calls >= longest.get().0 {
                        longest.set((calls, time));
                    }
                    time
                });
            });
            let (calls, time) = longest.get();
            if calls > 0 {
                let algorithm = (bytes as f64 * calls as f64) / time.as_secs_f64() / 1e9;
                let bus = algorithm * 2.0 * (RANKS as f64 - 1.0) / RANKS as f64;
                println!("algorithm bandwidth {algorithm:.2} GB/s, bus bandwidth {bus:.2} GB/s");
            }
        }
        group.finish();
    }
}

/// Returns the time of `calls` all-reduces, after one untimed. Collective.
fn timed<T: Element>(
    shm: &dyn Communicator,
    calls: u64,
    bytes: usize,
    in_segment: bool,
    zero: T,
) -> Duration {
    let len = bytes / size_of::<T>();
    let shared = shm.alloc_shared(bytes).unwrap().unwrap();
    let mut own = vec![zero; len];
    let buffer = match in_segment {
        // SAFETY: the memory is long enough, page-aligned, zeroed, and used only here.
        true => unsafe { std::slice::from_raw_parts_mut(shared.ptr.cast::<T>().as_ptr(), len) },
        false => &mut own[..],
    };
    let mut reduce = || shm.all_reduce(BufferMut::host(buffer), ReduceOp::Sum).unwrap();
    reduce();
    shm.barrier().unwrap();
    let start = Instant::now();
    (0..calls).for_each(|_| reduce());
    let time = start.elapsed();
    shm.barrier().unwrap();
    time
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20);
    targets = all_reduce
}
criterion_main!(benches);
