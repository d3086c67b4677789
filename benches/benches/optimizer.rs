//! One optimizer step over all parameters of a ResNet-18.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use job::config::{self, OptimizerName};
use support::{alone, replica};
use trainer::arithmetic::Arithmetic;
use trainer::optim::Optimizer;

fn optimizer(c: &mut Criterion) {
    tch::set_num_threads(1);
    let flat = replica(&*alone(), Arithmetic::Fp32).flat;
    let _ = flat.grads.shallow_clone().fill_(1e-3);
    let sgd = config::Optimizer {
        name: OptimizerName::Sgd,
        betas: None,
        eps: None,
        momentum: Some(0.9),
        nesterov: Some(true),
        ..config::Optimizer::default()
    };
    let mut group = c.benchmark_group("optimizer");
    group.throughput(Throughput::Elements(flat.parameters.numel() as u64));
    for (name, config) in [("adamw", config::Optimizer::default()), ("sgd-nesterov", sgd)] {
        let mut optimizer = Optimizer::new(&config, &flat);
        group.bench_function(name, |b| b.iter(|| optimizer.step(&flat, 1e-4).unwrap()));
    }
    group.finish();
}

criterion_group!(benches, optimizer);
criterion_main!(benches);
