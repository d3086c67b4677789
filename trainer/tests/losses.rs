//! How gradients are communicated does not change the losses of the first 50 steps.

#![allow(clippy::unwrap_used)]

mod common;

use common::{Memory, Outcome, Recipe, options};
use job::config::BucketCap;
use trainer::grad_sync::{Options, Timing};

const STEPS: usize = 50;
/// Of a loss, between one rank and two, which add the same numbers in another order: 50 steps of
/// training make more of what the first ones differ by in the last bits.
const TOLERANCE: f64 = 1e-4;

/// Batch norm is frozen, as its statistics depend on who holds which part of a batch.
fn recipe() -> Recipe {
    let global_batch = 8;
    Recipe { train_images: STEPS * global_batch, global_batch, ..Recipe::sgd() }
}

fn losses(recipe: &Recipe, world_size: usize) -> Vec<f64> {
    let mut ranks = recipe.train_on(world_size);
    let Outcome { losses, .. } = ranks.remove(0);
    assert_eq!(losses.len(), STEPS);
    losses
}

/// The largest difference of a loss, as a fraction.
fn furthest(one: &[f64], other: &[f64]) -> f64 {
    one.iter().zip(other).map(|(one, other)| (one - other).abs() / one).fold(0.0, f64::max)
}

#[test]
fn the_losses_of_fifty_steps_are_the_same_however_gradients_are_communicated() {
    let one = losses(&recipe(), 1);
    let two = losses(&recipe(), 2);
    let far = furthest(&one, &two);
    assert!(far < TOLERANCE, "losses on two ranks are {far:e} off: {one:?} {two:?}");

    let mut slower = recipe();
    slower.optimizer.lr *= 0.9;
    let far = furthest(&one, &losses(&slower, 1));
    assert!(far > 10.0 * TOLERANCE, "another learning rate makes no difference: {far:e}");

    let by_measurement = Options { bucket_cap: BucketCap::Auto, ..options(Timing::Overlapped, 1) };
    let others = [
        ("overlap", Recipe { options: options(Timing::Overlapped, 1), ..recipe() }),
        ("buckets by measurement", Recipe { options: by_measurement, ..recipe() }),
        ("gradients outside of shared memory", Recipe { memory: Memory::Private, ..recipe() }),
    ];
    for (what, other) in others {
        // Each element is summed in rank order, however it gets there.
        assert!(losses(&other, 2) == two, "{what} changes a loss");
    }
}
