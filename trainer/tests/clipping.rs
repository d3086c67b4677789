//! Gradients of too large a norm are scaled down as PyTorch's `clip_grad_norm_` does.

#![allow(clippy::unwrap_used)]

mod common;

use comm::single::Single;
use common::{Recipe, replica};
use job::config;
use tch::{Device, Kind, Tensor};
use trainer::model::Mode;
use trainer::optim::Optimizer;

/// Takes two steps on gradients that are noise times `scale`. Returns the parameters after them, and the
/// gradient norm of the second.
fn steps(optimizer: &config::Optimizer, scale: impl Fn(&Tensor) -> f64) -> (Tensor, f64) {
    let mut replica = replica(&Single::default(), Mode::TrainFrozenNorm);
    let mut optimizer_state = Optimizer::new(optimizer, &replica.flat);
    for step in 0..2 {
        let len = replica.flat.grads.numel() as i64;
        let noise = (Tensor::arange(len, (Kind::Float, Device::Cpu)) * 0.37 + step).sin();
        replica.flat.grads.copy_(&(&noise * scale(&noise)));
        optimizer_state.step(&replica.flat, 0.1).unwrap();
    }
    (replica.flat.parameters.detach().copy(), optimizer_state.grad_norm(&replica.flat))
}

fn with_clip(optimizer: config::Optimizer, norm: f64) -> config::Optimizer {
    config::Optimizer { clip_grad_norm: Some(norm), ..optimizer }
}

#[test]
fn clipped_gradients_are_those_of_pytorch() {
    // AdamW divides by the size of the gradients: without a large eps it would see no difference.
    let adamw = config::Optimizer { eps: Some(1.0), ..config::Optimizer::default() };
    for optimizer in [adamw, Recipe::sgd().optimizer] {
        let most = 3.0;
        let by_hand = |grads: &Tensor| (most / (grads.norm().double_value(&[]) + 1e-6)).min(1.0);
        let (expected, clipped_norm) = steps(&optimizer, by_hand);
        let (found, norm) = steps(&with_clip(optimizer.clone(), most), |_| 1.0);
        let furthest = (&found - &expected).abs().max().double_value(&[]);
        assert!(furthest < 1e-7, "{:?}: off by {furthest}", optimizer.name);
        let (unclipped, whole_norm) = steps(&optimizer, |_| 1.0);
        let moved = (&found - &unclipped).abs().max().double_value(&[]);
        assert!(moved > 1e-3, "{:?}: clipping does nothing: {moved}", optimizer.name);
        assert!((clipped_norm - most).abs() < 1e-3);
        assert_eq!(norm, whole_norm, "records show the norm before clipping");

        let (below, _) = steps(&with_clip(optimizer, 1e6), |_| 1.0);
        assert!(below.equal(&unclipped), "gradients below the norm are changed");
    }
}
