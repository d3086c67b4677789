//! Smoothed and mixed targets give PyTorch's losses and gradients.

#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;

use common::deviation::larger;
use serde::Deserialize;
use tch::{Kind, Tensor};
use trainer::loss::{Mixed, Targets};

#[derive(Deserialize)]
struct Reference {
    logits: Vec<f32>,
    labels: Vec<i64>,
    others: Vec<i64>,
    share: Vec<f32>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    smoothing: f64,
    certain: Loss,
    mixed: Loss,
}

#[derive(Deserialize)]
struct Loss {
    loss: f64,
    gradient: Vec<f32>,
}

#[test]
fn smoothed_and_mixed_targets_give_the_losses_and_gradients_of_pytorch() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/targets.json");
    let reference: Reference =
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let mut largest: f64 = 0.0;
    for case in &reference.cases {
        for (is_mixed, expected) in [(false, &case.certain), (true, &case.mixed)] {
            let mixed = is_mixed.then(|| Mixed {
                labels: Tensor::from_slice(&reference.others),
                share: Tensor::from_slice(&reference.share),
            });
            let labels = Tensor::from_slice(&reference.labels);
            let targets = Targets { labels, mixed, label_smoothing: case.smoothing };
            let rows = reference.labels.len() as i64;
            let logits = Tensor::from_slice(&reference.logits).view([rows, -1]);
            let logits = logits.set_requires_grad(true);
            let loss = targets.loss_sum(&logits);
            loss.backward();
            let of_loss = (loss.double_value(&[]) - expected.loss).abs() / expected.loss;
            let gradient = Tensor::from_slice(&expected.gradient);
            let of_gradient = (logits.grad().flatten(0, -1) - gradient).abs().max();
            let of_gradient = of_gradient.to_kind(Kind::Double).double_value(&[]);
            largest = larger(largest, larger(of_loss, of_gradient));
        }
    }
    println!("label_smoothing, mixed targets: largest deviation {largest:e}");
    assert!(largest < 1e-6, "{largest}");
}
