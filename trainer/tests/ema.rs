//! Moving averages of weights are those of PyTorch's `AveragedModel`.

#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;

use comm::single::Single;
use common::deviation::larger;
use common::replica;
use job::config::{self, Train};
use serde::Deserialize;
use tch::{Kind, Tensor};
use trainer::ema::Ema;
use trainer::model::Mode;
use trainer::optim::Optimizer;

#[derive(Deserialize)]
struct Reference {
    /// Weights after each step.
    weights: Vec<Vec<f32>>,
    running: Vec<Vec<f32>>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    decay: f64,
    every: u64,
    weights: Vec<f32>,
    running: Vec<f32>,
}

/// Overwrites the first elements of a flat buffer, which are the ones that the reference has.
fn put(flat: &Tensor, values: &[f32]) {
    tch::no_grad(|| flat.narrow(0, 0, values.len() as i64).copy_(&Tensor::from_slice(values)));
}

fn deviation(average: &Tensor, expected: &[f32]) -> f64 {
    let off = average.narrow(0, 0, expected.len() as i64) - Tensor::from_slice(expected);
    off.abs().max().to_kind(Kind::Double).double_value(&[])
}

#[test]
fn averages_of_weights_and_running_statistics_are_those_of_averaged_model() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/ema.json");
    let reference: Reference =
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let mut largest: f64 = 0.0;
    for case in &reference.cases {
        let mut replica = replica(&Single::default(), Mode::Train);
        let mut optimizer = Optimizer::new(&config::Optimizer::default(), &replica.flat);
        let train =
            Train { ema_decay: Some(case.decay), ema_every: case.every, ..Train::default() };
        let mut ema = Ema::new(&train, &replica.flat).unwrap();
        let flat = &mut replica.flat;
        for (step, weights) in reference.weights.iter().enumerate() {
            put(&flat.parameters, weights);
            put(&flat.buffers, &reference.running[step]);
            ema.after_step(step as u64 + 1, flat, &mut optimizer).unwrap();
        }
        let averages = ema.storage();
        largest = larger(largest, deviation(&averages.parameters, &case.weights));
        largest = larger(largest, deviation(&averages.buffers, &case.running));
    }
    println!("ema: largest deviation {largest:e}");
    assert!(largest < 1e-7, "{largest}");
}

#[test]
fn a_replica_has_its_own_weights_again_after_its_averages_were_used() {
    let mut replica = replica(&Single::default(), Mode::Train);
    let train = Train { ema_decay: Some(0.5), ..Train::default() };
    let mut ema = Ema::new(&train, &replica.flat).unwrap();
    put(&replica.flat.parameters, &[5.0; 8]);
    let before = [replica.flat.parameters.copy(), replica.flat.buffers.copy()];
    let seen = ema.in_place_of_weights(&mut replica, |replica| {
        let _ = replica.flat.buffers.fill_(7.0);
        Ok(replica.flat.parameters.copy())
    });
    assert_eq!(seen.unwrap(), ema.storage().parameters);
    assert_eq!([&replica.flat.parameters, &replica.flat.buffers], [&before[0], &before[1]]);
    assert_eq!(ema.storage().buffers, before[1].full_like(7.0));
}
