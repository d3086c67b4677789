//! Several ranks do what one rank does.

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use comm::bootstrap::{Backend, Store, connect};
use comm::env::{StartedBy, World};
use job::config::{self, Augment, Model, OptimizerName, Precision};
use job::dataset::{self, DataSet, Source};
use job::network::Network;
use job::shard;
use tch::{Device, Kind, Tensor};
use trainer::data::{Augmenter, Images};
use trainer::eval::evaluate;
use trainer::flat::Flat;
use trainer::grad_sync::GradSync;
use trainer::init::initialize;
use trainer::model::{Mode, ResNet};
use trainer::optim::Optimizer;
use trainer::step::{Counter, Replica, StepParts, Tally, train_step};

const STEPS: usize = 10;
const GLOBAL_BATCH: usize = 24;
/// Nine whole batches and one of 13, which two or three ranks cannot share evenly.
const TRAIN_IMAGES: usize = 9 * GLOBAL_BATCH + 13;
const TEST_IMAGES: usize = 37;
const TIMEOUT: Duration = Duration::from_secs(60);

/// Ranks that are threads find each other here.
#[derive(Default)]
struct Board {
    values: Mutex<HashMap<String, String>>,
    changed: Condvar,
}

impl Store for Board {
    fn put(&self, key: &str, value: &str) -> comm::Result<()> {
        self.values.lock().unwrap().insert(key.to_owned(), value.to_owned());
        self.changed.notify_all();
        Ok(())
    }

    fn get(&self, key: &str, timeout: Duration) -> comm::Result<String> {
        let values = self.values.lock().unwrap();
        let missing = |values: &mut HashMap<_, _>| !values.contains_key(key);
        let (values, _) = self.changed.wait_timeout_while(values, timeout, missing).unwrap();
        Ok(values[key].clone())
    }
}

/// What a run of [`STEPS`] steps came to.
#[derive(Debug, Clone, PartialEq)]
struct Outcome {
    losses: Vec<f64>,
    weights: Vec<f32>,
    test: Tally,
}

fn data() -> DataSet {
    let config = config::Data {
        train_images: Some(TRAIN_IMAGES),
        test_images: Some(TEST_IMAGES),
        ..config::Data::default()
    };
    dataset::load(&Source::Synthetic { because: None }, &config, 0).unwrap()
}

/// How gradients are communicated, which must not matter.
#[derive(Debug, Clone, Copy)]
struct Communication {
    bucket_cap_mib: usize,
    overlap: bool,
}

const PLAIN: Communication = Communication { bucket_cap_mib: 4, overlap: false };

fn train(
    world: World,
    board: &Board,
    optimizer: &config::Optimizer,
    Communication { bucket_cap_mib, overlap }: Communication,
) -> Outcome {
    let communicator = connect(Backend::Shm, world, Some(board), TIMEOUT).unwrap();
    let data_set = data();
    let network = Network::new(&Model::default(), data_set.train.shape, data_set.classes.len());
    let mut flat = Flat::new(network.tensors(true), Device::Cpu, &*communicator).unwrap();
    initialize(&mut flat, 0);
    let model = ResNet::new(&network, &flat);
    let mut replica = Replica {
        flat,
        model,
        device: Device::Cpu,
        precision: Precision::Fp32,
        convolutions: Rc::default(),
        // Statistics of a batch depend on who holds which part of it; frozen ones do not.
        norm_mode: Mode::Eval,
    };
    let mut optimizer_state = Optimizer::new(optimizer, &replica.flat);
    let grad_sync =
        GradSync::new(&replica.flat, communicator.clone(), bucket_cap_mib, overlap).unwrap();
    let mut counter = Counter::new(Device::Cpu);
    let images = Images::new(&data_set.train, &data_set, Device::Cpu);
    let augmenter = Augmenter::new(&[Augment::Crop, Augment::Flip], 0).unwrap();
    let order = shard::epoch_order(images.len(), 0, 0);

    let (mut losses, mut offset) = (Vec::new(), 0);
    let per_rank = GLOBAL_BATCH / world.world_size;
    while let Some(batch) =
        shard::next_batch(images.len(), offset, per_rank, world.rank, world.world_size)
    {
        let indices = &order[batch.local.clone()];
        let local = (!indices.is_empty()).then(|| images.augmented_batch(indices, &augmenter, 0));
        let parts = StepParts {
            optimizer: &mut optimizer_state,
            grad_sync: &grad_sync,
            counter: &mut counter,
        };
        train_step(&mut replica, parts, local.as_ref(), batch.global.len(), optimizer.lr).unwrap();
        let (tally, _) = counter.exchange(&*communicator, false).unwrap();
        assert_eq!(tally.images as usize, batch.global.len());
        losses.push(tally.loss());
        offset = batch.global.end;
    }
    let test_images = Images::new(&data_set.test, &data_set, Device::Cpu);
    let test = evaluate(&mut replica, &test_images, &*communicator).unwrap();
    let weights = Vec::<f32>::try_from(&replica.flat.parameters).unwrap();
    communicator.finalize().unwrap();
    Outcome { losses, weights, test }
}

fn train_on(
    world_size: usize,
    optimizer: &config::Optimizer,
    communication: Communication,
) -> Vec<Outcome> {
    let optimizer = optimizer.clone();
    on_ranks(world_size, move |world, board| train(world, board, &optimizer, communication))
}

/// Runs `body` on ranks that are threads.
fn on_ranks<T: Send + 'static>(
    world_size: usize,
    body: impl Fn(World, &Board) -> T + Send + Sync + 'static,
) -> Vec<T> {
    tch::set_num_threads(1);
    let (board, body) = (Arc::new(Board::default()), Arc::new(body));
    let ranks: Vec<_> = (0..world_size)
        .map(|rank| {
            let (board, body) = (Arc::clone(&board), Arc::clone(&body));
            let world = World {
                rank,
                world_size,
                local_rank: rank,
                local_world_size: world_size,
                started_by: StartedBy::Launcher,
            };
            std::thread::spawn(move || body(world, &board))
        })
        .collect();
    ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
}

/// In fp32, a sum over ranks adds the same numbers in another order.
fn assert_close(what: &str, one: f64, other: f64) {
    let tolerance = 1e-4 * one.abs().max(1e-3);
    assert!((one - other).abs() <= tolerance, "{what}: {other} instead of {one}");
}

fn assert_ranks_equal_one(optimizer: &config::Optimizer) {
    let one = train_on(1, optimizer, PLAIN).remove(0);
    assert_eq!(one.losses.len(), STEPS);
    assert!(one.losses[STEPS - 1] < one.losses[0], "it learns nothing: {:?}", one.losses);
    for world_size in [2, 3, 4] {
        let ranks = train_on(world_size, optimizer, PLAIN);
        for other in &ranks[1..] {
            assert!(*other == ranks[0], "ranks of {world_size} differ from each other");
        }
        for (step, (one, many)) in one.losses.iter().zip(&ranks[0].losses).enumerate() {
            assert_close(&format!("loss of step {step} on {world_size} ranks"), *one, *many);
        }
        assert_eq!(ranks[0].test.images as usize, TEST_IMAGES);
        assert_close("test loss", one.test.loss(), ranks[0].test.loss());
        let furthest = one.weights.iter().zip(&ranks[0].weights).map(|(a, b)| (a - b).abs());
        let furthest = furthest.fold(0f32, f32::max);
        assert!(furthest < 1e-4, "a weight differs by {furthest} on {world_size} ranks");
    }
}

#[test]
fn several_ranks_equal_one_at_the_same_global_batch() {
    assert_ranks_equal_one(&sgd());
}

fn sgd() -> config::Optimizer {
    config::Optimizer {
        name: OptimizerName::Sgd,
        lr: 0.02,
        momentum: Some(0.9),
        nesterov: Some(true),
        ..config::Optimizer::default()
    }
}

#[test]
fn overlap_and_bucket_size_change_no_bit() {
    for world_size in [2, 3] {
        let plain = train_on(world_size, &sgd(), PLAIN).remove(0);
        for (bucket_cap_mib, overlap) in [(4, true), (1, true), (64, true), (1, false)] {
            let communication = Communication { bucket_cap_mib, overlap };
            let other = train_on(world_size, &sgd(), communication).remove(0);
            assert!(other == plain, "{communication:?} on {world_size} ranks changes the result");
        }
    }
}

#[test]
fn a_rank_without_images_does_not_hold_up_the_others() {
    let sums = on_ranks(2, |world, board| {
        let communicator = connect(Backend::Shm, world, Some(board), TIMEOUT).unwrap();
        let network = Network::new(&Model::default(), [3, 32, 32], 10);
        let tensors = network.tensors(true);
        let mut flat = Flat::new(tensors, Device::Cpu, &*communicator).unwrap();
        initialize(&mut flat, 0);
        let sync = GradSync::new(&flat, communicator.clone(), 1, true).unwrap();
        sync.begin();
        if world.rank == 0 {
            let images = Tensor::ones([2, 3, 32, 32], (Kind::Float, Device::Cpu));
            ResNet::new(&network, &flat).forward(&images, Mode::Eval).sum(Kind::Float).backward();
        }
        sync.finish().unwrap();
        let norm = flat.grads.norm().double_value(&[]);
        communicator.finalize().unwrap();
        norm
    });
    assert!(sums[0] > 0.0 && sums[0] == sums[1], "{sums:?}");
}
