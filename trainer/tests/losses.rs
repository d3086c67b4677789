//! How gradients are communicated does not change the losses of the first 50 steps.

#![allow(clippy::unwrap_used)]

mod common;

use common::deviation::larger;
use common::{Memory, Outcome, Recipe, options};
use job::config::BucketCap;
use trainer::grad_sync::{Options, Timing};

const STEPS: usize = 50;
/// Relative tolerance of a loss, between one rank and two, which add the same numbers in another order: 50
/// steps of training amplify a difference in the last bits of the first steps.
const TOLERANCE: f64 = 5e-4;

/// Returns a recipe of [`STEPS`] steps. Batch norm is frozen, as its statistics depend on which rank holds
/// which part of a batch.
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

/// Returns the largest relative difference of a loss.
fn furthest(one: &[f64], other: &[f64]) -> f64 {
    one.iter().zip(other).map(|(one, other)| (one - other).abs() / one).fold(0.0, larger)
}

#[test]
fn the_losses_of_fifty_steps_are_the_same_however_gradients_are_communicated() {
    let one = losses(&recipe(), 1);
    let two = losses(&recipe(), 2);
    let far = furthest(&one, &two);
    assert!(far < TOLERANCE, "losses on two ranks are {far:e} off: {one:?} {two:?}");

    let mut slower = recipe();
    slower.optimizer.lr *= 0.5;
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

/// Starts `test` again under `mpirun`, as each rank of `machines` pretended machines with `ranks` ranks each.
/// Returns the losses of rank 0; `None` if this process is such a rank.
#[cfg(feature = "mpi")]
fn losses_over_mpi(test: &str, [machines, ranks]: [usize; 2]) -> Option<Vec<f64>> {
    use comm::bootstrap::{Backend, MPIRUN, connect};
    use comm::env::{StartedBy, World};

    let world = World::from_env().unwrap();
    if world.started_by == StartedBy::Mpirun {
        tch::set_num_threads(1);
        let world = World { local_rank: world.rank % ranks, local_world_size: ranks, ..world };
        let timeout = std::time::Duration::from_secs(60);
        let backend = Backend::Mpi { hierarchical: true };
        let communicator = connect(backend, world, None, timeout).unwrap();
        let recipe = Recipe { options: options(Timing::Overlapped, 1), ..recipe() };
        let Outcome { losses, .. } = recipe.train(&communicator);
        communicator.finalize().unwrap();
        if world.rank == 0 {
            let bits: Vec<_> = losses.iter().map(|loss| loss.to_bits().to_string()).collect();
            println!("\nlosses {}", bits.join(" "));
        }
        return None;
    }
    let output = std::process::Command::new(MPIRUN.unwrap())
        .args(["--oversubscribe", "-n", &(machines * ranks).to_string()])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env("OMPI_ALLOW_RUN_AS_ROOT", "1")
        .env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let bits = text.lines().find_map(|line| line.strip_prefix("losses "));
    let Some(bits) = bits else { panic!("{output:?}") };
    Some(bits.split(' ').map(|bits| f64::from_bits(bits.parse().unwrap())).collect())
}

#[cfg(feature = "mpi")]
#[test]
fn over_mpi_the_losses_of_fifty_steps_are_those_of_shared_memory() {
    let test = "over_mpi_the_losses_of_fifty_steps_are_those_of_shared_memory";
    if let Some(found) = losses_over_mpi(test, [1, 2]) {
        // A sum over two ranks is the same in either order.
        assert_eq!(found, losses(&recipe(), 2));
    }
}

#[cfg(feature = "mpi")]
#[test]
fn by_way_of_machines_the_losses_of_fifty_steps_are_those_of_one_rank() {
    let test = "by_way_of_machines_the_losses_of_fifty_steps_are_those_of_one_rank";
    if let Some(found) = losses_over_mpi(test, [2, 2]) {
        let far = furthest(&losses(&recipe(), 1), &found);
        assert!(far < TOLERANCE, "losses on two machines are {far:e} off: {found:?}");
    }
}
