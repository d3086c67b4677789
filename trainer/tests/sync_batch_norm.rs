//! Batch norm over the images of all ranks.

#![allow(clippy::unwrap_used)]

mod common;

use common::deviation::larger;
use common::{Recipe, on_ranks, options};
use tch::{Device, Kind, Tensor};
use torch_ext::{NormParts, sync_batch_norm};
use trainer::grad_sync::Timing;
use trainer::model::Mode;

const CHANNELS: i64 = 5;

fn noise(size: &[i64], phase: f64) -> Tensor {
    let count = Tensor::arange(size.iter().product::<i64>(), (Kind::Double, Device::Cpu));
    (((count * 12.9898 + phase).sin() * 43.7).frac() + 0.3).to_kind(Kind::Float).view(size)
}

/// Runs forward and backward of one layer on ranks with `images` images each. Returns output and gradient of
/// the input, both over all ranks' images; gradients of weight and bias, summed over ranks; running mean and
/// variance.
fn one_layer(images: &'static [i64]) -> Vec<Tensor> {
    let total: i64 = images.iter().sum();
    let ranks = on_ranks(images.len(), |communicator| {
        let rank = communicator.rank();
        let start: i64 = images[..rank].iter().sum();
        let mine = |all: Tensor| all.narrow(0, start, images[rank]);
        let leaf = |tensor: Tensor| tensor.copy().set_requires_grad(true);
        let size = [total, CHANNELS, 3, 2];
        let input = leaf(mine(noise(&size, 1.0)));
        let (weight, bias) = (leaf(noise(&[CHANNELS], 2.0)), leaf(noise(&[CHANNELS], 3.0)));
        let (running_mean, running_var) = (noise(&[CHANNELS], 4.0), noise(&[CHANNELS], 5.0));
        let parts = NormParts {
            weight: &weight,
            bias: &bias,
            running_mean: &running_mean,
            running_var: &running_var,
            momentum: 0.1,
            eps: 1e-5,
        };
        let output = if images.len() > 1 {
            sync_batch_norm(&input, &parts, &communicator).unwrap()
        } else {
            let (weight, bias) = (Some(&weight), Some(&bias));
            let (mean, var) = (Some(&running_mean), Some(&running_var));
            input.batch_norm(weight, bias, mean, var, true, 0.1, 1e-5, true)
        };
        (&output * mine(noise(&size, 6.0))).sum(Kind::Float).backward();
        let of_images = [output.detach(), input.grad()];
        (of_images, [weight.grad(), bias.grad()], [running_mean, running_var])
    });
    let together = |index: usize| {
        Tensor::cat(&ranks.iter().map(|(of_images, ..)| &of_images[index]).collect::<Vec<_>>(), 0)
    };
    let sum = |index: usize| {
        let grads = ranks.iter().map(|(_, grads, _)| grads[index].shallow_clone());
        grads.reduce(|a, b| a + b).unwrap()
    };
    for (_, _, running) in &ranks {
        assert!(running[0].equal(&ranks[0].2[0]) && running[1].equal(&ranks[0].2[1]));
    }
    let running = ranks[0].2.iter().map(Tensor::shallow_clone);
    [together(0), together(1), sum(0), sum(1)].into_iter().chain(running).collect()
}

#[test]
fn ranks_normalise_as_one_with_all_images_however_these_are_divided() {
    let expected = one_layer(&[6]);
    for images in [&[3, 3][..], &[5, 1], &[6, 0], &[2, 0, 4], &[1, 2, 2, 1]] {
        for (index, (found, expected)) in one_layer(images).iter().zip(&expected).enumerate() {
            let far = (found - expected).abs().max().double_value(&[]);
            assert!(far < 2e-5, "{images:?}: result {index} is off by {far}");
        }
    }
}

fn recipe() -> Recipe {
    let mut recipe = Recipe { mode: Mode::Train, sync_batch_norm: true, ..Recipe::sgd() };
    recipe.train_images = 4 * recipe.global_batch;
    recipe.optimizer.lr = 1e-4;
    recipe
}

/// Relative tolerance of a loss. Rounding is much less, but may turn an activation near zero into zero, and
/// then its gradient is gone.
const TOLERANCE: f64 = 2e-3;

#[test]
fn ranks_that_share_statistics_train_as_one_with_the_whole_batch() {
    let one = recipe().train_on(1).remove(0);
    let furthest = |losses: &[f64]| {
        let far = one.losses.iter().zip(losses).map(|(one, other)| (one - other).abs() / one);
        far.fold(0.0, larger)
    };
    for world_size in [2, 3, 4] {
        let ranks = recipe().train_on(world_size);
        for other in &ranks[1..] {
            assert!(*other == ranks[0], "ranks of {world_size} differ from each other");
        }
        let far = furthest(&ranks[0].losses);
        assert!(far < TOLERANCE, "losses on {world_size} ranks are {far} off");
    }
    let alone = Recipe { sync_batch_norm: false, ..recipe() }.train_on(2).remove(0);
    let far = furthest(&alone.losses);
    assert!(far > 2.0 * TOLERANCE, "statistics of a rank's own images do as well: {far} off");
}

#[test]
fn overlap_and_microbatches_do_not_get_in_the_way() {
    for grad_accum_steps in [1, 2] {
        let mut plain = Recipe { grad_accum_steps, ..recipe() };
        // In the last batch, one of four ranks has no image.
        plain.train_images += 3;
        let overlapped = Recipe { options: options(Timing::Overlapped, 1), ..plain.clone() };
        for world_size in [2, 4] {
            let (plain, overlapped) =
                (plain.train_on(world_size).remove(0), overlapped.train_on(world_size).remove(0));
            assert!(plain == overlapped, "overlap changes the result on {world_size} ranks");
        }
    }
}
