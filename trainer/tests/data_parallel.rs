//! Training on several ranks gives the same result as training on one.

#![allow(clippy::unwrap_used)]

mod common;

use common::deviation::larger;
use common::{Outcome, Recipe, TEST_IMAGES, on_ranks, options, replica};
use job::config::{self, OptimizerName, WireDtype};
use tch::{Device, Kind, Tensor};
use trainer::grad_sync::{GradSync, Options, Timing};
use trainer::model::Mode;

const STEPS: usize = 10;

/// Asserts that two numbers are equal up to rounding: in fp32, a sum over ranks adds the same numbers in
/// another order.
fn assert_close(what: &str, one: f64, other: f64) {
    let tolerance = 1e-4 * one.abs().max(1e-3);
    assert!((one - other).abs() <= tolerance, "{what}: {other} instead of {one}");
}

fn assert_same_training(what: &str, one: &Outcome, other: &Outcome) {
    assert_eq!((one.losses.len(), other.losses.len()), (STEPS, STEPS));
    for (step, (one, other)) in one.losses.iter().zip(&other.losses).enumerate() {
        assert_close(&format!("{what}: loss of step {step}"), *one, *other);
    }
    assert_eq!(other.test.images as usize, TEST_IMAGES);
    assert_close(&format!("{what}: test loss"), one.test.loss(), other.test.loss());
    let furthest = one.weights.iter().zip(&other.weights).map(|(a, b)| f64::from((a - b).abs()));
    let furthest = furthest.fold(0.0, larger);
    // Observed: less than 1e-4 with AMX, 2.5e-4 with AVX2.
    assert!(furthest < 5e-4, "{what}: a weight differs by {furthest}");
}

#[test]
fn several_ranks_equal_one_at_the_same_global_batch() {
    let one = Recipe::sgd().train_on(1).remove(0);
    assert!(one.losses[STEPS - 1] < one.losses[0], "it learns nothing: {:?}", one.losses);
    for world_size in [2, 3, 4] {
        let ranks = Recipe::sgd().train_on(world_size);
        for other in &ranks[1..] {
            assert!(*other == ranks[0], "ranks of {world_size} differ from each other");
        }
        assert_same_training(&format!("{world_size} ranks"), &one, &ranks[0]);
    }
}

#[test]
fn ranks_that_share_muons_work_train_as_one_does() {
    // In bf16 the order of a sum makes more difference than in fp32; few iterations keep that small.
    let optimizer = config::Optimizer {
        name: OptimizerName::Muon,
        lr: 0.02,
        ns_steps: Some(2),
        ..config::Optimizer::default()
    };
    let recipe = Recipe { optimizer, ..Recipe::sgd() };
    let one = recipe.train_on(1).remove(0);
    assert!(one.losses[STEPS - 1] < one.losses[0], "it learns nothing: {:?}", one.losses);
    for world_size in [2, 3] {
        let ranks = recipe.train_on(world_size);
        for other in &ranks[1..] {
            assert!(*other == ranks[0], "ranks of {world_size} differ from each other");
        }
        for (other, one) in ranks[0].losses.iter().zip(&one.losses) {
            assert!((other - one).abs() < 0.01 * one, "{other} instead of {one}");
        }
        let squares = |of: fn((&f32, &f32)) -> f32| {
            let pairs = one.weights.iter().zip(&ranks[0].weights);
            pairs.map(|pair| f64::from(of(pair)).powi(2)).sum::<f64>().sqrt()
        };
        let apart = squares(|(one, other)| one - other) / squares(|(one, _)| *one);
        assert!(apart < 0.02, "weights of {world_size} ranks are {apart} apart");
    }
}

#[test]
fn microbatches_add_up_to_the_whole_batch() {
    let whole = Recipe::sgd().train_on(1).remove(0);
    let in_parts = Recipe { grad_accum_steps: 2, ..Recipe::sgd() };
    assert_same_training("1 rank", &whole, &in_parts.train_on(1)[0]);
    let ranks = in_parts.train_on(2);
    assert!(ranks[0] == ranks[1], "ranks differ from each other");
    assert_same_training("2 ranks", &whole, &ranks[0]);
    let options = options(Timing::Overlapped, 1);
    let overlapped = Recipe { options, ..in_parts }.train_on(2).remove(0);
    assert!(overlapped == ranks[0], "overlap changes the result");
}

#[test]
fn overlap_and_bucket_size_change_no_bit() {
    use Timing::{AfterBackward, Overlapped};
    for world_size in [2, 3] {
        let plain = Recipe::sgd().train_on(world_size).remove(0);
        for (bucket_cap_mib, timing) in
            [(4, Overlapped), (1, Overlapped), (64, Overlapped), (1, AfterBackward)]
        {
            let options = options(timing, bucket_cap_mib);
            let other = Recipe { options, ..Recipe::sgd() }.train_on(world_size).remove(0);
            assert!(other == plain, "{options:?} on {world_size} ranks changes the result");
        }
    }
}

#[test]
fn a_rank_without_images_does_not_hold_up_the_others() {
    let sums = on_ranks(2, |communicator| {
        let replica = replica(&*communicator, Mode::TrainFrozenNorm);
        let options = options(Timing::Overlapped, 1);
        let sync = GradSync::new(&replica.flat, communicator.clone(), options).unwrap();
        sync.begin();
        if communicator.rank() == 0 {
            let images = Tensor::ones([2, 3, 32, 32], (Kind::Float, Device::Cpu));
            replica.model.forward(&images, Mode::Eval).sum(Kind::Float).backward();
        }
        sync.finish().unwrap();
        replica.flat.grads.norm().double_value(&[])
    });
    assert!(sums[0] > 0.0 && sums[0] == sums[1], "{sums:?}");
}

#[test]
fn gradients_in_bf16_are_rounded_summed_in_fp32_and_rounded_again() {
    let ranks = on_ranks(2, |communicator| {
        let mut replica = replica(&*communicator, Mode::TrainFrozenNorm);
        let mut sums = Vec::new();
        for timing in [Timing::AfterBackward, Timing::Overlapped] {
            let options = Options { wire_dtype: WireDtype::Bf16, ..options(timing, 1) };
            let sync = GradSync::new(&replica.flat, communicator.clone(), options).unwrap();
            sync.begin();
            let len = replica.flat.grads.numel() as i64;
            replica.flat.grads.copy_(&gradient_of(communicator.rank(), len));
            sync.finish().unwrap();
            sums.push(replica.flat.grads.copy());
        }
        sums
    });
    let len = ranks[0][0].numel() as i64;
    let rounded = |tensor: &Tensor| tensor.to_kind(Kind::BFloat16).to_kind(Kind::Float);
    let sum = rounded(&(rounded(&gradient_of(0, len)) + rounded(&gradient_of(1, len))));
    for found in ranks.iter().flatten() {
        assert!(found.equal(&sum), "{}", (found - &sum).abs().max().double_value(&[]));
    }
}

/// Returns a gradient of numbers that bf16 cannot represent exactly.
fn gradient_of(rank: usize, len: i64) -> Tensor {
    (Tensor::arange(len, (Kind::Float, Device::Cpu)) * 0.37 + rank as f64).sin()
}

#[test]
fn training_with_gradients_in_bf16_stays_near() {
    let plain = Recipe::sgd().train_on(2).remove(0);
    let options = Options { wire_dtype: WireDtype::Bf16, ..options(Timing::Overlapped, 1) };
    let ranks = Recipe { options, ..Recipe::sgd() }.train_on(2);
    assert!(ranks[0] == ranks[1], "ranks differ from each other");
    assert!(ranks[0].losses != plain.losses, "nothing was rounded");
    for (rounded, plain) in ranks[0].losses.iter().zip(&plain.losses) {
        assert!((rounded - plain).abs() < 0.02 * plain, "{rounded} instead of {plain}");
    }
}

#[test]
fn ranks_that_do_not_communicate_diverge() {
    let options = options(Timing::Never, 1);
    let ranks = Recipe { options, ..Recipe::sgd() }.train_on(2);
    assert!(ranks[0].losses == ranks[1].losses, "counts are those of all ranks");
    assert!(ranks[0].weights != ranks[1].weights);
}
