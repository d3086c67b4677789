//! One whole training step of one rank on one core: ResNet-18, batch 64.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use job::config::{self, BucketCap, Convolution};
use support::{alone, options, replica};
use tch::Device;
use trainer::arithmetic::Arithmetic;
use trainer::convolutions;
use trainer::data::Images;
use trainer::grad_sync::GradSync;
use trainer::optim::Optimizer;
use trainer::step::{Microbatch, StepParts, train_step};
use trainer::tally::Counter;

const BATCH: usize = 64;

fn step(c: &mut Criterion) {
    tch::set_num_threads(1);
    let data_set = support::data();
    let images = Images::new(&data_set.train, &data_set.normalization, Device::Cpu);
    let indices: Vec<u32> = (0..BATCH as u32).collect();
    let mut group = c.benchmark_group("step");
    group.throughput(Throughput::Elements(BATCH as u64));
    for (name, arithmetic) in [("fp32", Arithmetic::Fp32), ("bf16", Arithmetic::Bf16)] {
        let mut replica = replica(&*alone(), arithmetic);
        let (auto, [channels, height, width]) = (Convolution::Auto, data_set.train.shape);
        let batch = [BATCH, channels, height, width];
        convolutions::choose(&replica, auto, batch, Vec::new(), &*alone(), &|| false).unwrap();
        let mut optimizer = Optimizer::new(&config::Optimizer::default(), &replica.flat);
        let grad_sync = GradSync::new(&replica.flat, alone(), options(BucketCap::Auto)).unwrap();
        let mut counter = Counter::new(Device::Cpu);
        group.bench_function(name, |b| {
            b.iter(|| {
                let batch = Microbatch { batch: images.batch(&indices), global_len: BATCH };
                let parts = StepParts {
                    optimizer: &mut optimizer,
                    grad_sync: &grad_sync,
                    counter: &mut counter,
                };
                train_step(&mut replica, parts, std::iter::once(batch), BATCH, 1e-4).unwrap()
            });
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20);
    targets = step
}
criterion_main!(benches);
