//! Making batches: gathered and normalised, and with each augmentation.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use job::config::Augment;
use tch::Device;
use trainer::data::{Augmenter, Images};

fn loader(c: &mut Criterion) {
    tch::set_num_threads(1);
    let data_set = support::data();
    let images = Images::new(&data_set.train, &data_set.normalization, Device::Cpu);
    let mut group = c.benchmark_group("loader");
    for batch in [64u32, 256] {
        let indices: Vec<u32> = (0..batch).map(|index| index * 37 % 10_000).collect();
        group.throughput(Throughput::Elements(u64::from(batch)));
        group.bench_with_input(BenchmarkId::new("plain", batch), &indices, |b, indices| {
            b.iter(|| images.batch(indices));
        });
        for augment in [
            &[Augment::Crop][..],
            &[Augment::Flip],
            &[Augment::Cutout],
            &[Augment::Crop, Augment::Flip, Augment::Cutout],
        ] {
            let augmenter = Augmenter::new(augment, 0).unwrap();
            let name = format!("{augment:?}").to_lowercase().replace(['[', ']', ' '], "");
            group.bench_with_input(BenchmarkId::new(name, batch), &indices, |b, indices| {
                b.iter(|| images.augmented_batch(indices, &augmenter, 0));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, loader);
criterion_main!(benches);
