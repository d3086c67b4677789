//! Leaving out the taps of kernels that never see a pixel changes nothing.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use comm::bootstrap::{Backend, connect};
use comm::env::World;
use job::config::{self, BucketCap, Model, OptimizerName, Train, WireDtype};
use job::dataset::{self, DataSet, Source};
use job::network::Network;
use tch::{Device, Tensor};
use trainer::arithmetic::Arithmetic;
use trainer::checkpoint::{self, State};
use trainer::data::Images;
use trainer::ema::Ema;
use trainer::flat::Flat;
use trainer::grad_sync::{GradSync, Options, Timing};
use trainer::init::initialize;
use trainer::loss_scaler::LossScalerState;
use trainer::model::Module;
use trainer::optim::Optimizer;
use trainer::replica::Replica;
use trainer::step::{Microbatch, StepParts, train_step};
use trainer::tally::Counter;

const STEPS: usize = 20;
const BATCH: usize = 16;
/// Relative tolerance: another kernel size makes libtorch add in another order.
const TOLERANCE: f64 = 2e-4;

/// Returns the number of steps in which rounding differences stay small. Without AVX-512, kernels round
/// differently for another kernel size, and within ten steps that grows to a hundredth of a loss.
fn steps() -> usize {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx512f") {
        return STEPS;
    }
    5
}

struct Trained {
    replica: Replica,
    optimizer: Optimizer,
    ema: Ema,
    losses: Vec<f64>,
}

fn untrained(live_taps: bool, optimizer: &config::Optimizer) -> (Replica, Optimizer) {
    let alone = connect(Backend::Shm, World::SINGLE, None, Duration::from_secs(1)).unwrap();
    let network = Network::new(&Model::default(), [3, 32, 32], 10);
    let mut flat = Flat::new(network.tensors(live_taps), Device::Cpu, &*alone).unwrap();
    let expected =
        if live_taps { network.live_parameter_count() } else { network.parameter_count() };
    assert_eq!(flat.parameters.numel(), expected);
    initialize(&mut flat, 0);
    let mut optimizer = Optimizer::new(optimizer, &flat);
    optimizer.compute_in(Arithmetic::Fp32); // bf16 is slow on CPUs without it
    let model = Module::new(&network, &flat);
    (Replica::new(flat, model, Arithmetic::Fp32), optimizer)
}

fn data() -> DataSet {
    let config = config::Data {
        train_images: Some(STEPS * BATCH),
        test_images: Some(1),
        ..config::Data::default()
    };
    dataset::load(&Source::Synthetic { because: None }, &config, 0).unwrap()
}

/// Settings of the moving average; the last steps come after its last update.
fn average() -> Train {
    Train { ema_decay: Some(0.7), ema_every: 3, ..Train::default() }
}

fn train(live_taps: bool, config: &config::Optimizer, overflows: bool) -> Trained {
    tch::set_num_threads(1);
    let (mut replica, mut optimizer) = untrained(live_taps, config);
    if overflows {
        optimizer.scale_losses(LossScalerState::default());
    }
    let mut ema = Ema::new(&average(), &replica.flat).unwrap();
    let alone = connect(Backend::Shm, World::SINGLE, None, Duration::from_secs(1)).unwrap();
    let data_set = data();
    let images = Images::new(&data_set.train, &data_set.normalization, Device::Cpu);
    let wire_dtype = WireDtype::Fp32;
    let options =
        Options { timing: Timing::AfterBackward, bucket_cap: BucketCap::Auto, wire_dtype };
    let grad_sync = GradSync::new(&replica.flat, alone.clone(), options).unwrap();
    let mut counter = Counter::new(Device::Cpu);
    let losses = (0..steps()).map(|step| {
        if overflows && step % 7 == 3 {
            let _ = replica.flat.grads.fill_(f64::INFINITY);
            optimizer.step(&replica.flat, config.lr).unwrap();
        }
        let indices: Vec<u32> = (step * BATCH..(step + 1) * BATCH).map(|i| i as u32).collect();
        let parts =
            StepParts { optimizer: &mut optimizer, grad_sync: &grad_sync, counter: &mut counter };
        let batch = Microbatch { batch: images.batch(&indices), global_len: BATCH };
        train_step(&mut replica, parts, std::iter::once(batch), BATCH, config.lr).unwrap();
        ema.after_step(step as u64 + 1, &mut replica.flat, &mut optimizer).unwrap();
        counter.exchange(&*alone, false).unwrap().0.loss()
    });
    let losses = losses.collect();
    optimizer.apply_pending_decay(&mut replica.flat).unwrap();
    Trained { replica, optimizer, ema, losses }
}

fn optimizers() -> [config::Optimizer; 2] {
    let adamw = config::Optimizer { weight_decay: 0.1, ..config::Optimizer::default() };
    let sgd = config::Optimizer {
        name: OptimizerName::Sgd,
        lr: 0.01,
        weight_decay: 0.05,
        momentum: Some(0.9),
        nesterov: Some(false),
        ..config::Optimizer::default()
    };
    [adamw, sgd]
}

/// Returns the largest difference, relative to the largest element of `one`.
fn difference(one: &Tensor, other: &Tensor) -> f64 {
    assert_eq!(one.size(), other.size());
    let scale = one.abs().max().double_value(&[]).max(1e-6);
    (one - other).abs().max().double_value(&[]) / scale
}

#[test]
fn weights_are_the_same_with_and_without_dead_taps_after_twenty_steps() {
    let [adamw, sgd] = optimizers();
    for (config, overflows) in [(&adamw, false), (&sgd, false), (&adamw, true), (&sgd, true)] {
        let (live, whole) = (train(true, config, overflows), train(false, config, overflows));
        assert_eq!(live.optimizer.steps(), steps() as u64, "skipped steps are not counted");
        for (one, other) in live.losses.iter().zip(&whole.losses) {
            assert!(
                (one - other).abs() < TOLERANCE * other,
                "{:?} {:?}",
                live.losses,
                whole.losses
            );
        }
        let (initial, _) = untrained(true, config);
        let initial = initial.flat.state_dict();
        for averaged in [false, true] {
            let of = |Trained { replica: Replica { flat, .. }, ema, .. }: &Trained| match averaged {
                true => flat.state_dict_of(ema.storage()),
                false => flat.state_dict(),
            };
            let others = of(&whole);
            for (index, (name, tensor)) in of(&live).iter().enumerate() {
                let what = format!("{:?}: {name}, averaged: {averaged}", config.name);
                let found = difference(tensor, &others[index].1);
                assert!(found < 50.0 * TOLERANCE, "{what} differs by {found}");
                if name == "layer4.1.conv2.weight" {
                    // A corner of a kernel on a 1x1 map, a dead tap: weight decay changes it equally with and
                    // without live taps.
                    let corner = |tensor: &Tensor| tensor.select(2, 0).select(2, 0);
                    let now = corner(tensor);
                    assert!(difference(&now, &corner(&others[index].1)) < 1e-6, "{what}");
                    let decayed = difference(&now, &corner(&initial[index].1));
                    assert!(decayed > 5e-5, "{what}: decay left it alone: {decayed}");
                }
            }
        }
    }
}

#[test]
fn muon_makes_the_same_matrices_orthogonal_with_and_without_dead_taps() {
    let config = config::Optimizer {
        name: OptimizerName::Muon,
        lr: 0.01,
        weight_decay: 0.1,
        ns_steps: Some(2),
        ..config::Optimizer::default()
    };
    let (live, whole) = (untrained(true, &config), untrained(false, &config));
    let initial = whole.0.flat.state_dict();
    let [live, whole] = [live, whole].map(|(mut replica, mut optimizer)| {
        for step in 0..3 {
            // Both optimizers get the same gradients, of the live taps alone.
            let (source, _) = untrained(true, &config);
            let flat = &source.flat;
            let len = flat.grads.numel() as i64;
            let noise =
                (Tensor::arange(len, (tch::Kind::Double, Device::Cpu)).square() + step).sin();
            flat.grads.shallow_clone().copy_(&noise);
            let mut grads: std::collections::HashMap<_, _> =
                flat.assemble(&flat.grads, None).into_iter().collect();
            let flat = &replica.flat;
            flat.scatter(&flat.grads, None, |name| grads.remove(name)).unwrap();
            optimizer.step(flat, config.lr).unwrap();
        }
        optimizer.apply_pending_decay(&mut replica.flat).unwrap();
        replica.flat.state_dict()
    });
    for (index, (name, tensor)) in live.iter().enumerate() {
        let (other, initial) = (&whole[index].1, &initial[index].1);
        if name.ends_with("weight") {
            // Without its dead columns, the matrix of a kernel is multiplied in another order.
            let size = |tensor: Tensor| tensor.norm().double_value(&[]);
            let found = size(tensor - other) / size(other - initial);
            assert!(found < 1e-3, "{name} differs by {found}");
        }
        if name == "layer4.1.conv2.weight" {
            let corner = |tensor: &Tensor| tensor.select(2, 0).select(2, 0);
            assert!(difference(&corner(tensor), &corner(other)) < 1e-6);
            assert!(difference(&corner(tensor), &corner(initial)) > 1e-4, "decay left it alone");
        }
    }
}

#[test]
fn checkpoints_with_and_without_dead_taps_load_each_other() {
    let muon =
        config::Optimizer { name: OptimizerName::Muon, ns_steps: Some(1), ..Default::default() };
    for config in optimizers().into_iter().chain([muon]) {
        for live_taps in [true, false] {
            let folder = tempfile::tempdir().unwrap();
            let written = train(live_taps, &config, false);
            let state = State::start(1, String::new());
            let (flat, optimizer) = (&written.replica.flat, &written.optimizer);
            let path = checkpoint::save(folder.path(), flat, optimizer, Some(&written.ema), &state);
            let path = path.unwrap();

            let (mut replica, mut optimizer) = untrained(!live_taps, &config);
            checkpoint::load_model(&path, &mut replica.flat).unwrap();
            checkpoint::load_optimizer(&path, &replica.flat, &mut optimizer).unwrap();
            assert_eq!(optimizer.steps(), steps() as u64);
            let again = tempfile::tempdir().unwrap();
            let mut ema = Ema::new(&average(), &replica.flat).unwrap();
            checkpoint::load_ema(&path, &replica.flat, &mut ema).unwrap();
            let copy =
                checkpoint::save(again.path(), &replica.flat, &optimizer, Some(&ema), &state)
                    .unwrap();
            for file in ["model.safetensors", "ema.safetensors", "optimizer.safetensors"] {
                let read = |folder: &std::path::Path| std::fs::read(folder.join(file)).unwrap();
                assert!(read(&path) == read(&copy), "{file}, written with live_taps {live_taps}");
            }
        }
    }
}
