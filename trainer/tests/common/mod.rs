//! Training on ranks that are threads.

#![allow(dead_code, clippy::unwrap_used)]

pub mod deviation;

use std::sync::Arc;
use std::time::Duration;

use comm::bootstrap::{Backend, MemoryStore, connect};
use comm::communicator::Work;
use comm::env::{StartedBy, World};
use comm::{Blame, Collective, Communicator, RawBuffer};
use job::config::{
    self, Augment, BucketCap, Crop, Flip, Mixup, Model, OptimizerName, Tta, WireDtype,
};
use job::dataset::{self, DataSet, Source};
use job::network::Network;
use job::shard::{self, Microbatch as Part};
use tch::Device;
use trainer::arithmetic::Arithmetic;
use trainer::data::{Augmenter, Images};
use trainer::eval::evaluate;
use trainer::flat::Flat;
use trainer::grad_sync::{GradSync, Options, Timing};
use trainer::init::initialize;
use trainer::model::{Mode, Module};
use trainer::optim::Optimizer;
use trainer::replica::Replica;
use trainer::step::{Microbatch, StepParts, train_step};
use trainer::tally::{Counter, Tally};

pub const TEST_IMAGES: usize = 37;
pub const TIMEOUT: Duration = Duration::from_secs(60);

/// Runs `body` on ranks that are threads, and then finalizes their communicators. Returns the result of each
/// rank.
pub fn on_ranks<T: Send>(
    world_size: usize,
    body: impl Fn(Arc<dyn Communicator>) -> T + Sync,
) -> Vec<T> {
    let ended = |communicator: Arc<dyn Communicator>| {
        let result = body(Arc::clone(&communicator));
        communicator.finalize().unwrap();
        result
    };
    on_ranks_that_wait(TIMEOUT, world_size, ended)
}

/// Like [`on_ranks`], with ranks that wait for each other for `timeout`, and without finalizing their
/// communicators.
pub fn on_ranks_that_wait<T: Send>(
    timeout: Duration,
    world_size: usize,
    body: impl Fn(Arc<dyn Communicator>) -> T + Sync,
) -> Vec<T> {
    tch::set_num_threads(1);
    let (store, body) = (MemoryStore::default(), &body);
    std::thread::scope(|scope| {
        let ranks: Vec<_> = (0..world_size)
            .map(|rank| {
                let world = World {
                    rank,
                    world_size,
                    local_rank: rank,
                    local_world_size: world_size,
                    started_by: StartedBy::Launcher,
                };
                let store = &store;
                scope.spawn(move || {
                    body(connect(Backend::Shm, world, Some(store), timeout).unwrap())
                })
            })
            .collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

/// Where gradients are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Memory {
    /// In shared memory, where the communicator reduces them without a copy.
    Shared,
    /// In private memory of the rank.
    Private,
}

/// A communicator that offers no shared memory.
struct WithoutSharedMemory(Arc<dyn Communicator>);

impl Communicator for WithoutSharedMemory {
    fn rank(&self) -> usize {
        self.0.rank()
    }

    fn world_size(&self) -> usize {
        self.0.world_size()
    }

    fn backend(&self) -> &'static str {
        self.0.backend()
    }

    unsafe fn start(&self, collective: Collective, buffer: RawBuffer) -> comm::Result<Work> {
        // SAFETY: the caller keeps the contract of `start`.
        unsafe { self.0.start(collective, buffer) }
    }

    fn abort(&self, reason: &str, blame: Blame) {
        self.0.abort(reason, blame);
    }

    fn finalize(&self) -> comm::Result<()> {
        self.0.finalize()
    }
}

/// Returns a network with its initial weights, for steps of several microbatches.
pub fn replica(communicator: &dyn Communicator, mode: Mode) -> Replica {
    replica_for(communicator, mode, 2)
}

/// Returns a network with its initial weights, for steps of `microbatches` microbatches.
pub fn replica_for(communicator: &dyn Communicator, mode: Mode, microbatches: usize) -> Replica {
    let network = Network::new(&Model::default(), [3, 32, 32], 10);
    let mut flat = Flat::new(network.tensors(true), Device::Cpu, communicator).unwrap();
    initialize(&mut flat, 0);
    if microbatches == 1 {
        flat.defer_gradients(None);
    }
    let model = Module::new(&network, &flat);
    Replica { mode, ..Replica::new(flat, model, Arithmetic::Fp32) }
}

/// Returns options with which gradients are sent as they are, in fp32.
pub fn options(timing: Timing, bucket_cap_mib: usize) -> Options {
    let bucket_cap = BucketCap::Mib(bucket_cap_mib);
    Options { timing, bucket_cap, wire_dtype: WireDtype::Fp32 }
}

/// Result of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    pub losses: Vec<f64>,
    pub weights: Vec<f32>,
    pub test: Tally,
}

/// Settings for one epoch of training.
#[derive(Debug, Clone)]
pub struct Recipe {
    pub train_images: usize,
    pub global_batch: usize,
    pub grad_accum_steps: usize,
    pub optimizer: config::Optimizer,
    pub options: Options,
    pub mode: Mode,
    pub sync_batch_norm: bool,
    pub memory: Memory,
}

impl Recipe {
    /// Returns settings with SGD, for nine whole batches and one of 13 images, which two or three ranks
    /// cannot share evenly.
    pub fn sgd() -> Self {
        let global_batch = 24;
        Self {
            train_images: 9 * global_batch + 13,
            global_batch,
            grad_accum_steps: 1,
            optimizer: config::Optimizer {
                name: OptimizerName::Sgd,
                lr: 0.02,
                momentum: Some(0.9),
                nesterov: Some(true),
                ..config::Optimizer::default()
            },
            options: options(Timing::AfterBackward, 4),
            // Statistics of a batch depend on which rank holds which part of it; frozen ones do not.
            mode: Mode::TrainFrozenNorm,
            sync_batch_norm: false,
            memory: Memory::Shared,
        }
    }

    fn data(&self) -> DataSet {
        let config = config::Data {
            train_images: Some(self.train_images),
            test_images: Some(TEST_IMAGES),
            ..config::Data::default()
        };
        dataset::load(&Source::Synthetic { because: None }, &config, 0).unwrap()
    }

    /// Trains on ranks that are threads, and returns the result of each.
    pub fn train_on(&self, world_size: usize) -> Vec<Outcome> {
        on_ranks(world_size, |communicator| match self.memory {
            Memory::Shared => self.train(&communicator),
            Memory::Private => {
                let private: Arc<dyn Communicator> = Arc::new(WithoutSharedMemory(communicator));
                self.train(&private)
            }
        })
    }

    /// Trains as the rank of `communicator`, and returns the result.
    pub fn train(&self, communicator: &Arc<dyn Communicator>) -> Outcome {
        let (rank, world_size) = (communicator.rank(), communicator.world_size());
        let data_set = self.data();
        let mut replica = replica_for(&**communicator, self.mode, self.grad_accum_steps);
        if self.sync_batch_norm && world_size > 1 {
            replica.sync_batch_norm = true;
            replica.model.synchronize_batch_norm(communicator);
        }
        let mut optimizer = Optimizer::new(&self.optimizer, &replica.flat);
        if world_size > 1 && self.options.timing != Timing::Never {
            optimizer.share_work(communicator).unwrap();
        }
        let grad_sync =
            GradSync::new(&replica.flat, Arc::clone(communicator), self.options).unwrap();
        let mut counter = Counter::new(Device::Cpu);
        let images = Images::new(&data_set.train, &data_set.normalization, Device::Cpu);
        let augment = [
            Augment::Crop(Crop::default()),
            Augment::Flip(Flip::default()),
            Augment::Mixup(Mixup::default()),
        ];
        let augmenter = Augmenter::new(&augment, 0).unwrap();
        let order = shard::epoch_order(images.len(), 0, 0);

        let (mut losses, mut offset) = (Vec::new(), 0);
        let per_rank = self.global_batch / world_size;
        let whole = per_rank * world_size;
        while let Some(batch) = shard::next_batch(images.len(), offset, whole, rank, world_size) {
            let microbatches = batch.microbatches(per_rank / self.grad_accum_steps, world_size);
            let made = microbatches.into_iter().map(|Part { local, global_len }| {
                let batch = images.augmented_batch(&order[local], &augmenter, 0);
                Microbatch { batch: batch.smoothed(0.1), global_len }
            });
            let parts = StepParts {
                optimizer: &mut optimizer,
                grad_sync: &grad_sync,
                counter: &mut counter,
            };
            let (lr, size) = (self.optimizer.lr, batch.global.len());
            train_step(&mut replica, parts, made, size, lr).unwrap();
            let (tally, _) = counter.exchange(&**communicator, false).unwrap();
            assert_eq!(tally.images as usize, size);
            losses.push(tally.loss());
            offset = batch.global.end;
        }
        let test_images = Images::new(&data_set.test, &data_set.normalization, Device::Cpu);
        let test =
            evaluate(&mut replica, &test_images, Tta::None, &**communicator, &|| false).unwrap();
        let weights = Vec::<f32>::try_from(&replica.flat.parameters).unwrap();
        Outcome { losses, weights, test: test.unwrap() }
    }
}
