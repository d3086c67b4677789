//! Making batches: gathering and normalising, alone and with each augmentation.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use job::config::{Augment, ColorJitter, Crop, Cutmix, Cutout, Flip, Mixup, RandAugment};
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
        let crop = Augment::Crop(Crop::default());
        let flip = Augment::Flip(Flip::default());
        let cutout = Augment::Cutout(Cutout::default());
        for augment in [
            &[crop][..],
            &[flip],
            &[cutout],
            &[crop, flip, cutout],
            &[Augment::RandAugment(RandAugment::default())],
            &[Augment::ColorJitter(ColorJitter::default())],
            &[Augment::Mixup(Mixup::default())],
            &[Augment::Cutmix(Cutmix::default())],
        ] {
            let augmenter = Augmenter::new(augment, 0).unwrap();
            let name = augment.iter().map(Augment::name).collect::<Vec<_>>().join(",");
            group.bench_with_input(BenchmarkId::new(name, batch), &indices, |b, indices| {
                b.iter(|| images.augmented_batch(indices, &augmenter, 0));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, loader);
criterion_main!(benches);
