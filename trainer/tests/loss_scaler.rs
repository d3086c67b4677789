//! Losses are scaled as `torch.amp.GradScaler` does, and a step whose gradients overflow changes nothing.

#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;

use comm::single::Single;
use common::{Recipe, replica};
use job::config;
use serde::Deserialize;
use tch::{Device, Kind, Tensor};
use torch_ext::{AdamW, DeviceInputs};
use trainer::checkpoint::{self, State};
use trainer::loss_scaler::{LossScaler, LossScalerState};
use trainer::model::Mode;
use trainer::optim::Optimizer;
use trainer::replica::Replica;

#[derive(Deserialize)]
struct Reference {
    steps: usize,
    overflows: Vec<usize>,
    /// For each step that changed the scale: step, and scale and growth tracker after it.
    changes: Vec<(usize, f32, i32)>,
    growth_tracker: i32,
    weights: Vec<f32>,
}

#[test]
fn scale_and_weights_follow_grad_scaler_over_overflows_and_growth() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/loss_scaler.json");
    let reference: Reference =
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let rule = AdamW { lr: 0.001, betas: [0.9, 0.999], weight_decay: 0.01, eps: 1e-8 };
    let weights = Tensor::from_slice(&[0.5f32, -0.25, 1.0, 2.0]);
    let (exp_avg, exp_avg_sq) = (weights.zeros_like(), weights.zeros_like());
    let mut count = Tensor::from(0f32);
    let mut scaler = LossScaler::new(LossScalerState::default(), Device::Cpu);
    let (mut scale, mut changes) = (scaler.state().scale, Vec::new());
    for step in 0..reference.steps {
        let factors = (Tensor::arange(4, (Kind::Float, Device::Cpu)) + step as f64).sin();
        if reference.overflows.contains(&step) {
            let _ = factors.get(2).fill_(f64::INFINITY);
        }
        let grads = scaler.scale(&factors);
        let found_inf = scaler.unscale(&grads).unwrap().shallow_clone();
        count += 1.0;
        let device_inputs = DeviceInputs { found_inf: Some(&found_inf), ..DeviceInputs::default() };
        let [weights, grads, exp_avg, exp_avg_sq] =
            [&weights, &grads, &exp_avg, &exp_avg_sq].map(|tensor| [tensor.shallow_clone()]);
        rule.step(&weights, &grads, &exp_avg, &exp_avg_sq, &count, device_inputs).unwrap();
        count -= &found_inf;
        scaler.update();
        let state = scaler.state();
        if state.scale != scale {
            scale = state.scale;
            changes.push((step, scale, state.growth_tracker));
        }
    }
    assert_eq!(changes, reference.changes);
    assert_eq!(scaler.state().growth_tracker, reference.growth_tracker);
    let difference = (weights - Tensor::from_slice(&reference.weights)).abs().max();
    assert!(difference.double_value(&[]) < 1e-6, "{difference}");
}

fn optimizers() -> [config::Optimizer; 2] {
    let adamw = config::Optimizer { clip_grad_norm: Some(3.0), ..config::Optimizer::default() };
    [adamw, Recipe::sgd().optimizer]
}

fn scaled(config: &config::Optimizer, state: LossScalerState) -> (Replica, Optimizer) {
    let replica = replica(&Single::default(), Mode::TrainFrozenNorm);
    let mut optimizer = Optimizer::new(config, &replica.flat);
    optimizer.scale_losses(state);
    (replica, optimizer)
}

/// Takes a step on noise that is scaled as backward would leave it; `worst` replaces one element.
fn step(replica: &Replica, optimizer: &mut Optimizer, phase: f64, worst: Option<f64>) {
    let grads = &replica.flat.grads;
    let noise =
        (Tensor::arange(grads.numel() as i64, (Kind::Float, Device::Cpu)) * 0.37 + phase).sin();
    grads.shallow_clone().copy_(&optimizer.scaled(noise));
    if let Some(worst) = worst {
        let _ = grads.get(1234).fill_(worst);
    }
    optimizer.step(&replica.flat, 0.01).unwrap();
}

fn saved(replica: &mut Replica, optimizer: &mut Optimizer) -> [Vec<u8>; 2] {
    let folder = tempfile::tempdir().unwrap();
    optimizer.apply_pending_decay(&mut replica.flat).unwrap();
    let state = State::start(1, String::new());
    let path = checkpoint::save(folder.path(), &replica.flat, optimizer, None, &state).unwrap();
    ["model.safetensors", "optimizer.safetensors"]
        .map(|file| std::fs::read(path.join(file)).unwrap())
}

#[test]
fn a_step_that_overflows_is_as_if_it_had_not_been_but_for_the_scale() {
    for config in optimizers() {
        let (mut with, mut optimizer) = scaled(&config, LossScalerState::default());
        let (mut without, mut other) = scaled(&config, LossScalerState::default());
        for (phase, worst) in [
            (0.0, Some(f64::INFINITY)),
            (1.0, None),
            (2.0, Some(f64::NAN)),
            (3.0, None),
            (4.0, Some(f64::NEG_INFINITY)),
        ] {
            step(&with, &mut optimizer, phase, worst);
            if worst.is_none() {
                step(&without, &mut other, phase, None);
            }
        }
        assert!(!optimizer.grad_norm(&with.flat).is_finite(), "{:?}", config.name);
        assert_eq!((optimizer.steps(), other.steps()), (2, 2));
        // Scales are powers of two, so gradients are the same to the bit.
        let states = (saved(&mut with, &mut optimizer), saved(&mut without, &mut other));
        assert!(states.0 == states.1, "{:?}: a skipped step left a trace", config.name);
        let state = |optimizer: &Optimizer| optimizer.loss_scaler_state().unwrap();
        assert_eq!(state(&optimizer), LossScalerState { scale: 8192.0, growth_tracker: 0 });
        assert_eq!(state(&other), LossScalerState { scale: 65536.0, growth_tracker: 2 });
    }
}

#[test]
fn a_scaled_loss_changes_weights_as_an_unscaled_one() {
    for config in optimizers() {
        let (scaled_replica, mut optimizer) = scaled(&config, LossScalerState::default());
        let plain_replica = replica(&Single::default(), Mode::TrainFrozenNorm);
        let mut plain = Optimizer::new(&config, &plain_replica.flat);
        for phase in [1.0, 2.0] {
            step(&scaled_replica, &mut optimizer, phase, None);
            step(&plain_replica, &mut plain, phase, None);
        }
        let equal = scaled_replica.flat.parameters.equal(&plain_replica.flat.parameters);
        assert!(equal, "{:?}", config.name);
        let norms =
            (optimizer.grad_norm(&scaled_replica.flat), plain.grad_norm(&plain_replica.flat));
        assert_eq!(norms.0, norms.1, "records show the norm of what was not scaled");
    }
}
