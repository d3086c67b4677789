//! Tests of the NCCL backend, where there are GPUs. Each rank is a thread with its own GPU.
#![allow(clippy::unwrap_used)]

mod common;

use std::ptr::NonNull;
use std::time::Duration;

use comm::bootstrap::{Backend, connect};
use comm::env::{StartedBy, World};
use comm::{Collective, Communicator, DType, Memory, RawBuffer, ReduceOp, nccl};
use common::MemoryStore;
use common::table::check_all;
use nccl_rs::cuda::Cuda;

const TIMEOUT: Duration = Duration::from_secs(60);

fn world(rank: usize, world_size: usize) -> World {
    World {
        rank,
        world_size,
        local_rank: rank,
        local_world_size: world_size,
        started_by: StartedBy::Launcher,
    }
}

/// Returns the number of GPUs that NCCL can use here; prints why if there are none.
fn gpus() -> usize {
    let devices = Cuda::open().and_then(|cuda| cuda.device_count());
    match (devices, nccl_rs::Nccl::open()) {
        (Ok(devices), Ok(_)) if devices > 0 => devices,
        (Ok(_), Ok(_)) => skip("no GPU is visible"),
        (Err(error), _) | (_, Err(error)) => skip(&error.to_string()),
    }
}

fn skip(reason: &str) -> usize {
    let has_gpu = std::path::Path::new("/dev/nvidiactl").exists();
    assert!(!has_gpu, "there is a GPU, and it cannot be used: {reason}");
    println!("skipped: {reason}");
    0
}

fn with_ranks(body: impl Fn(&dyn Communicator, usize) + Sync) {
    for world_size in 1..=gpus().min(4) {
        let store = MemoryStore::default();
        std::thread::scope(|scope| {
            for rank in 0..world_size {
                let (store, body) = (&store, &body);
                scope.spawn(move || {
                    let world = world(rank, world_size);
                    let comm = nccl::connect(world, rank, Some(store), TIMEOUT).unwrap();
                    body(&*comm, rank);
                    comm.finalize().unwrap();
                });
            }
        });
    }
}

#[test]
fn every_collective_is_right_on_gpus() {
    with_ranks(|comm, _| check_all(comm));
}

#[test]
fn a_device_buffer_is_ordered_with_its_stream() {
    const LEN: usize = 100_003;
    with_ranks(|comm, device| {
        let cuda = Cuda::open().unwrap();
        let _guard = cuda.use_device(device).unwrap();
        let stream = cuda.stream().unwrap();
        let (host, data) =
            (cuda.pinned_memory(LEN * 4).unwrap(), cuda.device_memory(LEN * 4).unwrap());
        // SAFETY: the pinned memory is this long, and no device operation uses it yet.
        let values = unsafe { std::slice::from_raw_parts_mut(host.start().cast::<f32>(), LEN) };
        values.fill(comm.rank() as f32 + 1.0);
        let ptr = NonNull::new(data.start().cast()).unwrap();
        let memory = Memory::Cuda { device, stream: stream.handle() };
        let buffer = RawBuffer { ptr, len: LEN, dtype: DType::F32, memory };
        // SAFETY: all memory lives until the last event has been reached, below.
        let done = unsafe {
            cuda.copy(data.start(), host.start(), LEN * 4, &stream).unwrap();
            let work = comm.start(Collective::AllReduce(ReduceOp::Sum), buffer).unwrap();
            work.wait().unwrap();
            cuda.copy(host.start(), data.start(), LEN * 4, &stream).unwrap();
            cuda.record(stream.handle()).unwrap()
        };
        while !done.is_reached().unwrap() {
            std::thread::yield_now();
        }
        let n = comm.world_size();
        assert!(values.iter().all(|&x| x == (n * (n + 1) / 2) as f32));
    });
}

#[test]
fn without_a_gpu_the_error_says_what_is_missing() {
    if gpus() > 0 {
        return println!("skipped: there is a GPU");
    }
    let store = MemoryStore::default();
    let backend = Backend::Nccl { device: 0 };
    let error = connect(backend, world(0, 2), Some(&store), TIMEOUT).err().unwrap().to_string();
    assert!(error.starts_with("cannot connect ranks over nccl: "), "{error}");
}
