//! Leaving out taps that never see a pixel changes nothing.

#![allow(clippy::unwrap_used)]

use std::rc::Rc;
use std::time::Duration;

use comm::bootstrap::{Backend, connect};
use comm::env::World;
use job::config::{self, BucketCap, Model, OptimizerName, Precision, WireDtype};
use job::dataset::{self, DataSet, Source};
use job::network::Network;
use tch::{Device, Tensor};
use trainer::checkpoint::{self, State};
use trainer::data::Images;
use trainer::flat::Flat;
use trainer::grad_sync::{GradSync, Options, Timing};
use trainer::init::initialize;
use trainer::loss_scaler::LossScalerState;
use trainer::model::{Mode, Module};
use trainer::optim::Optimizer;
use trainer::step::{Counter, Microbatch, Replica, StepParts, train_step};

const STEPS: usize = 20;
const BATCH: usize = 16;
/// Another kernel size makes libtorch add in another order.
const TOLERANCE: f64 = 2e-4;

struct Trained {
    replica: Replica,
    optimizer: Optimizer,
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
    let optimizer = Optimizer::new(optimizer, &flat);
    let model = Module::new(&network, &flat);
    let replica = Replica {
        flat,
        model,
        device: Device::Cpu,
        precision: Precision::Fp32,
        convolutions: Rc::default(),
        norm_mode: Mode::Train,
        sync_batch_norm: false,
    };
    (replica, optimizer)
}

fn data() -> DataSet {
    let config = config::Data {
        train_images: Some(STEPS * BATCH),
        test_images: Some(1),
        ..config::Data::default()
    };
    dataset::load(&Source::Synthetic { because: None }, &config, 0).unwrap()
}

fn train(live_taps: bool, config: &config::Optimizer, overflows: bool) -> Trained {
    tch::set_num_threads(1);
    let (mut replica, mut optimizer) = untrained(live_taps, config);
    if overflows {
        optimizer.scale_losses(LossScalerState::default());
    }
    let alone = connect(Backend::Shm, World::SINGLE, None, Duration::from_secs(1)).unwrap();
    let data_set = data();
    let images = Images::new(&data_set.train, &data_set.normalization, Device::Cpu);
    let wire_dtype = WireDtype::Fp32;
    let options =
        Options { timing: Timing::AfterBackward, bucket_cap: BucketCap::Auto, wire_dtype };
    let grad_sync = GradSync::new(&replica.flat, alone.clone(), options).unwrap();
    let mut counter = Counter::new(Device::Cpu);
    let losses = (0..STEPS).map(|step| {
        if overflows && step % 7 == 3 {
            let _ = replica.flat.grads.fill_(f64::INFINITY);
            optimizer.step(&replica.flat, config.lr).unwrap();
        }
        let indices: Vec<u32> = (step * BATCH..(step + 1) * BATCH).map(|i| i as u32).collect();
        let parts =
            StepParts { optimizer: &mut optimizer, grad_sync: &grad_sync, counter: &mut counter };
        let batch = Microbatch { batch: images.batch(&indices), global_len: BATCH };
        train_step(&mut replica, parts, std::iter::once(batch), BATCH, config.lr).unwrap();
        counter.exchange(&*alone, false).unwrap().0.loss()
    });
    let losses = losses.collect();
    optimizer.settle(&mut replica.flat).unwrap();
    Trained { replica, optimizer, losses }
}

fn optimizers() -> [config::Optimizer; 2] {
    let adamw = config::Optimizer { weight_decay: 0.1, ..config::Optimizer::default() };
    let sgd = config::Optimizer {
        name: OptimizerName::Sgd,
        lr: 0.01,
        weight_decay: 0.05,
        clip_grad_norm: None,
        betas: None,
        eps: None,
        momentum: Some(0.9),
        nesterov: Some(false),
    };
    [adamw, sgd]
}

/// The largest difference, relative to the largest element.
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
        assert_eq!(live.optimizer.steps(), STEPS as u64, "skipped steps are not counted");
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
        let others = whole.replica.flat.state_dict();
        for (index, (name, tensor)) in live.replica.flat.state_dict().iter().enumerate() {
            let found = difference(tensor, &others[index].1);
            assert!(found < 50.0 * TOLERANCE, "{:?}: {name} differs by {found}", config.name);
            if name == "layer4.1.conv2.weight" {
                // A corner of a kernel on a 1x1 map: decayed, by the same on both sides.
                let corner = |tensor: &Tensor| tensor.select(2, 0).select(2, 0);
                let now = corner(tensor);
                assert!(difference(&now, &corner(&others[index].1)) < 1e-6, "{:?}", config.name);
                let decayed = difference(&now, &corner(&initial[index].1));
                assert!(decayed > 1e-3, "{:?}: decay left it alone: {decayed}", config.name);
            }
        }
    }
}

#[test]
fn checkpoints_with_and_without_dead_taps_load_each_other() {
    for config in optimizers() {
        for live_taps in [true, false] {
            let folder = tempfile::tempdir().unwrap();
            let written = train(live_taps, &config, false);
            let state = State::start(1, String::new());
            let (flat, optimizer) = (&written.replica.flat, &written.optimizer);
            let path = checkpoint::save(folder.path(), flat, optimizer, &state).unwrap();

            let (mut replica, mut optimizer) = untrained(!live_taps, &config);
            checkpoint::load_model(&path, &mut replica.flat).unwrap();
            checkpoint::load_optimizer(&path, &replica.flat, &mut optimizer).unwrap();
            assert_eq!(optimizer.steps(), STEPS as u64);
            let again = tempfile::tempdir().unwrap();
            let copy = checkpoint::save(again.path(), &replica.flat, &optimizer, &state).unwrap();
            for file in ["model.safetensors", "optimizer.safetensors"] {
                let read = |folder: &std::path::Path| std::fs::read(folder.join(file)).unwrap();
                assert!(read(&path) == read(&copy), "{file}, written with live_taps {live_taps}");
            }
        }
    }
}
