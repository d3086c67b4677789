//! What several benches share: ranks that are threads of this process.
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

/// Runs `body` as each rank of a group over shared memory; gives what rank 0 gives.
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

/// Made-up images.
pub fn data() -> DataSet {
    let config = config::Data {
        train_images: Some(10_000),
        test_images: Some(10),
        ..config::Data::default()
    };
    dataset::load(&Source::Synthetic { because: None }, &config, 0).unwrap()
}

/// A single rank.
pub fn alone() -> Arc<dyn Communicator> {
    connect(Backend::Shm, World::SINGLE, None, TIMEOUT).unwrap()
}

/// Gradients are sent as they are, after backward.
pub fn options(bucket_cap: BucketCap) -> Options {
    Options { timing: Timing::AfterBackward, bucket_cap, wire_dtype: WireDtype::Fp32 }
}

/// One rank's ResNet-18 as the notes have it.
pub fn replica(communicator: &dyn Communicator, arithmetic: Arithmetic) -> Replica {
    let network = Network::new(&Model::default(), [3, 32, 32], 10);
    let mut flat = Flat::new(network.tensors(true), Device::Cpu, communicator).unwrap();
    initialize(&mut flat, 0);
    flat.defer_gradients(None);
    let model = Module::new(&network, &flat);
    Replica::new(flat, model, arithmetic)
}
