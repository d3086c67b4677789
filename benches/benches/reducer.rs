//! Summing the gradients of a ResNet-18 over two ranks, by bucket size: the cost of communication in a step
//! without overlap.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::sync::Arc;
use std::time::Instant;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use job::config::BucketCap;
use support::{alone, on_ranks, options, replica};
use trainer::arithmetic::Arithmetic;
use trainer::grad_sync::GradSync;

fn reducer(c: &mut Criterion) {
    let mut group = c.benchmark_group("reducer/shm");
    let elements = replica(&*alone(), Arithmetic::Fp32).flat.grads.numel();
    group.throughput(Throughput::Bytes((elements * size_of::<f32>()) as u64));
    for bucket_cap_mib in [1, 4, 25] {
        let id = BenchmarkId::new("bucket-mib", bucket_cap_mib);
        group.bench_with_input(id, &bucket_cap_mib, |b, &cap| {
            b.iter_custom(|calls| {
                on_ranks(2, |shm| {
                    let replica = replica(&*shm, Arithmetic::Fp32);
                    let sync = GradSync::new(
                        &replica.flat,
                        Arc::clone(&shm),
                        options(BucketCap::Mib(cap)),
                    )
                    .unwrap();
                    sync.finish().unwrap();
                    shm.barrier().unwrap();
                    let start = Instant::now();
                    for _ in 0..calls {
                        sync.begin();
                        sync.finish().unwrap();
                    }
                    start.elapsed()
                })
            });
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10);
    targets = reducer
}
criterion_main!(benches);
