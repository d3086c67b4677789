//! Code shared by several benches. Ranks are threads of this process.
#![allow(dead_code, clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use comm::Communicator;
use comm::bootstrap::{Backend, MemoryStore, connect};
use comm::env::World;
use job::config::{self, BucketCap, Model, WireDtype};
use job::dataset::{self, DataSet, Source};
use job::network::Network;
use tch::Device;
use trainer::arithmetic::Arithmetic;
use trainer::flat::Flat;
use trainer::grad_sync::{Options, Timing};
use trainer::init::initialize;
use trainer::model::Module;
use trainer::replica::Replica;

const TIMEOUT: Duration = Duration::from_secs(60);

/// Runs `body` on each rank of a shared-memory group, and returns rank 0's result.
pub fn on_ranks<T: Send>(world_size: usize, body: impl Fn(Arc<dyn Communicator>) -> T + Sync) -> T {
    let store = MemoryStore::default();
    let run = |rank| {
        let shm = comm::shm::connect(rank, 0..world_size, &store, "bench", TIMEOUT).unwrap();
        body(Arc::new(shm))
    };
    std::thread::scope(|scope| {
        let run = &run;
        for rank in 1..world_size {
            scope.spawn(move || drop(run(rank)));
        }
        run(0)
    })
}

/// Returns synthetic images.
pub fn data() -> DataSet {
    let config = config::Data {
        train_images: Some(10_000),
        test_images: Some(10),
        ..config::Data::default()
    };
    dataset::load(&Source::Synthetic { because: None }, &config, 0).unwrap()
}

/// Returns the communicator of a single rank.
pub fn alone() -> Arc<dyn Communicator> {
    connect(Backend::Shm, World::SINGLE, None, TIMEOUT).unwrap()
}

/// Returns options that all-reduce the gradients in fp32, after backward.
pub fn options(bucket_cap: BucketCap) -> Options {
    Options { timing: Timing::AfterBackward, bucket_cap, wire_dtype: WireDtype::Fp32 }
}

/// Returns one rank's ResNet-18, with the notes' stem.
pub fn replica(communicator: &dyn Communicator, arithmetic: Arithmetic) -> Replica {
    let network = Network::new(&Model::default(), [3, 32, 32], 10);
    let mut flat = Flat::new(network.tensors(true), Device::Cpu, communicator).unwrap();
    initialize(&mut flat, 0);
    flat.defer_gradients(None);
    let model = Module::new(&network, &flat);
    Replica::new(flat, model, arithmetic)
}
