//! Tests of the shared-memory backend, with ranks that are threads.

#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use comm::bootstrap::{Backend, Store, connect};
use comm::env::{StartedBy, World};
use comm::{Blame, BufferMut, CommError, Communicator, ReduceOp, shm};
use common::MemoryStore;
use common::table::check_all;

const TIMEOUT: Duration = Duration::from_secs(60);

/// Runs `body` on each of `world_size` ranks; a panic in one is a panic here.
fn with_ranks(world_size: usize, body: impl Fn(&dyn Communicator) + Sync) {
    with_timeout(world_size, TIMEOUT, |shm| body(shm));
}

fn with_timeout(world_size: usize, timeout: Duration, body: impl Fn(&shm::Shm) + Sync) {
    let store = MemoryStore::default();
    std::thread::scope(|scope| {
        for rank in 0..world_size {
            let (store, body) = (&store, &body);
            scope.spawn(move || {
                body(&shm::connect(rank, 0..world_size, store, "test", timeout).unwrap());
            });
        }
    });
}

#[test]
fn every_collective_is_right_with_1_rank() {
    with_ranks(1, check_all);
}

#[test]
fn every_collective_is_right_with_2_ranks() {
    with_ranks(2, check_all);
}

#[test]
fn every_collective_is_right_with_3_ranks() {
    with_ranks(3, check_all);
}

#[test]
fn every_collective_is_right_with_4_ranks() {
    with_ranks(4, check_all);
}

#[test]
fn a_single_rank_needs_no_store_and_passes_the_same_table() {
    let comm = connect(Backend::Shm, World::SINGLE, None, TIMEOUT).unwrap();
    assert_eq!(comm.backend(), "single");
    check_all(&*comm);
    comm.finalize().unwrap();
}

#[test]
fn many_short_collectives_keep_their_order() {
    with_ranks(3, |comm| {
        for i in 0..2000_i64 {
            let mut data = [i, comm.rank() as i64];
            comm.all_reduce(BufferMut::host(&mut data), ReduceOp::Sum).unwrap();
            assert_eq!(data, [3 * i, 3]);
        }
        comm.finalize().unwrap();
    });
}

#[test]
fn several_allocations_are_told_apart() {
    with_ranks(2, |comm| {
        let first = comm.alloc_shared(1 << 20).unwrap().unwrap();
        let second = comm.alloc_shared(1 << 20).unwrap().unwrap();
        // The same call on different allocations goes through staging and is right all the same.
        let mine = if comm.rank() == 0 { &first } else { &second };
        // SAFETY: the allocation is 1 MiB long, and only this rank uses its part.
        let slice =
            unsafe { std::slice::from_raw_parts_mut(mine.ptr.cast::<f32>().as_ptr(), 1 << 18) };
        slice.fill(1.5);
        comm.all_reduce(BufferMut::host(slice), ReduceOp::Sum).unwrap();
        assert!(slice.iter().all(|&x| x == 3.0));
        drop(first);
        comm.barrier().unwrap();
    });
}

#[test]
fn shared_memory_outlives_its_communicator() {
    let memory = std::sync::Mutex::new(Vec::new());
    with_ranks(2, |comm| {
        let allocated = comm.alloc_shared(10_000).unwrap().unwrap();
        memory.lock().unwrap().push(allocated);
        comm.finalize().unwrap();
    });
    for memory in memory.into_inner().unwrap() {
        // SAFETY: the owner is here, and nobody else uses the memory.
        let bytes = unsafe { std::slice::from_raw_parts(memory.ptr.as_ptr(), 10_000) };
        assert!(bytes.iter().all(|&byte| byte == 0));
    }
}

#[test]
fn too_much_shared_memory_is_refused_on_all_ranks_and_harms_nothing() {
    with_ranks(3, |comm| {
        let error = comm.alloc_shared(1 << 48).err().unwrap().to_string();
        let culprit = if comm.rank() == 0 { "MiB of shared memory are needed" } else { "rank 0" };
        assert!(error.contains(culprit), "{error}");
        comm.barrier().unwrap();
    });
}

#[test]
fn different_lengths_are_named_on_both_sides() {
    with_ranks(2, |comm| {
        let mut data = vec![0.0_f32; if comm.rank() == 0 { 10 } else { 100_000 }];
        let error = comm.all_reduce(BufferMut::host(&mut data), ReduceOp::Sum).unwrap_err();
        let [short, long] =
            ["all_reduce(sum) of 10 x f32", "all_reduce(sum) of 100000 x f32"].map(str::to_owned);
        let CommError::Mismatch { sequence: 0, rank, here, peer, there } = error else {
            panic!("{error}");
        };
        assert_eq!((rank, peer), (comm.rank(), 1 - comm.rank()));
        assert_eq!([here, there], if rank == 0 { [short, long] } else { [long, short] });
    });
}

#[test]
fn different_collectives_are_named_and_end_the_group() {
    with_ranks(3, |comm| {
        let result = if comm.rank() == 2 {
            comm.barrier()
        } else {
            comm.all_reduce(BufferMut::host(&mut [1.0_f64]), ReduceOp::Max)
        };
        let CommError::Mismatch { peer, there, .. } = result.unwrap_err() else { panic!() };
        let expected =
            if comm.rank() == 2 { (0, "all_reduce(max) of 1 x f64") } else { (2, "barrier") };
        assert_eq!((peer, there.as_str()), expected);
        assert!(matches!(comm.barrier(), Err(CommError::Mismatch { .. })));
    });
}

#[test]
fn a_late_rank_is_named_with_its_last_collective() {
    let given_up = std::sync::Barrier::new(3);
    with_timeout(3, Duration::from_millis(300), |comm| {
        comm.broadcast(BufferMut::host(&mut [0_i64; 5]), 0).unwrap();
        if comm.rank() == 1 {
            given_up.wait();
            // Too late: it gets the others' failure instead of waiting for its own deadline.
            let error = comm.barrier().unwrap_err();
            assert!(matches!(error, CommError::Aborted { .. }), "{error}");
            return;
        }
        let error = comm.barrier().unwrap_err();
        let CommError::Timeout { op: "barrier", sequence: 1, missing, detail, .. } = &error else {
            panic!("{error}");
        };
        assert_eq!(missing, &[1]);
        assert_eq!(detail, "rank 1 last joined broadcast(from rank 0) of 5 x i64, #0");
        given_up.wait();
    });
}

#[test]
fn an_abort_reaches_ranks_that_wait_and_ranks_that_come_later() {
    let aborted = std::sync::Barrier::new(2);
    with_ranks(3, |comm| {
        let result = match comm.rank() {
            0 => {
                comm.abort("loss is not finite", Blame::Nobody);
                aborted.wait();
                comm.barrier()
            }
            1 => comm.barrier(),
            _ => {
                aborted.wait();
                comm.barrier()
            }
        };
        let error = result.unwrap_err();
        assert_eq!(error.to_string(), "rank 0 aborted the job: loss is not finite");
    });
}

#[test]
fn a_started_collective_fails_when_another_thread_aborts() {
    with_ranks(2, |comm| {
        if comm.rank() == 1 {
            comm.abort("no", Blame::Nobody);
            return;
        }
        let mut data = [1.0_f32];
        let buffer = BufferMut::host(&mut data).raw();
        // SAFETY: `data` lives until the work has been waited for, below.
        let work = unsafe { comm.start(comm::Collective::AllReduce(ReduceOp::Sum), buffer) };
        let result = work.and_then(comm::Work::wait);
        assert!(matches!(result, Err(CommError::Aborted { by: 1, .. })));
    });
}

#[test]
fn a_rank_that_leaves_without_finalize_is_named() {
    with_ranks(2, |comm| {
        if comm.rank() == 1 {
            return;
        }
        let error = comm.barrier().unwrap_err();
        assert_eq!(
            error.to_string(),
            "rank 1 aborted the job: rank 1 dropped its communicator before the end"
        );
    });
}

#[test]
fn nothing_runs_after_finalize() {
    with_ranks(2, |comm| {
        comm.finalize().unwrap();
        comm.finalize().unwrap();
        let error = comm.barrier().unwrap_err();
        assert_eq!(error.to_string(), "shm cannot run a collective after finalize");
    });
}

#[test]
fn a_rank_that_waits_for_something_else_is_not_taken_for_one_that_hangs() {
    with_timeout(2, Duration::from_millis(600), |shm| {
        shm.barrier().unwrap();
        if shm.rank() == 1 {
            for _ in 0..40 {
                shm.sign_of_life();
                std::thread::sleep(Duration::from_millis(50));
            }
            shm.barrier().unwrap();
            // Longer than its last sign of life lasts.
            std::thread::sleep(Duration::from_secs(3));
        } else {
            shm.barrier().unwrap();
            let error = shm.barrier().unwrap_err();
            assert!(
                matches!(&error, CommError::Timeout { missing, .. } if missing == &[1]),
                "{error}"
            );
        }
    });
}

#[test]
fn ranks_of_a_second_machine_are_named_as_the_job_names_them() {
    let store = MemoryStore::default();
    std::thread::scope(|scope| {
        for rank in 2..4 {
            let store = &store;
            scope.spawn(move || {
                let shm = shm::connect(rank, 2..4, store, "test", TIMEOUT).unwrap();
                let error = shm.alloc_shared(1 << 60).err().unwrap().to_string();
                let own = format!("alloc_shared #0 failed on rank {rank}: ");
                assert!(error.starts_with(&own), "{error}");
                assert!(
                    rank == 2
                        || error.ends_with("rank 2 could not create or map the shared buffer"),
                    "{error}"
                );
                shm.barrier().unwrap();
            });
        }
    });
}

#[test]
fn a_rank_that_never_connects_is_named() {
    let store = MemoryStore::default();
    let result = shm::connect(0, 0..2, &store, "test", Duration::from_millis(100));
    let error = result.err().unwrap();
    assert!(matches!(error, CommError::Timeout { op: "connect", rank: 0, .. }), "{error}");
    assert!(error.to_string().ends_with(" for rank 1; rank 1 never connected"), "{error}");
    let error = shm::connect(1, 0..2, &store, "other", Duration::from_millis(100)).err().unwrap();
    assert!(
        matches!(&error, CommError::Timeout { rank: 1, missing, .. } if missing == &[0]),
        "{error}"
    );
}

#[test]
fn a_segment_of_another_group_is_refused() {
    let store = MemoryStore::default();
    store.put("test", &format!("{} 0 1", std::process::id())).unwrap();
    let error = shm::connect(1, 0..2, &store, "test", TIMEOUT).err().unwrap().to_string();
    assert!(error.contains("cannot open rank 0's shared memory"), "{error}");
    store.put("test", "nonsense").unwrap();
    let error = shm::connect(1, 0..2, &store, "test", TIMEOUT).err().unwrap().to_string();
    assert!(error.contains("not a segment"), "{error}");
}

#[test]
fn ranks_on_several_machines_are_told_what_to_use() {
    let world = World {
        rank: 0,
        world_size: 4,
        local_rank: 0,
        local_world_size: 2,
        started_by: StartedBy::Launcher,
    };
    let error = connect(Backend::Shm, world, None, TIMEOUT).err().unwrap().to_string();
    assert!(error.contains("2 of 4 ranks are on this machine"), "{error}");
    let world = World { local_world_size: 4, ..world };
    let error = connect(Backend::Shm, world, None, TIMEOUT).err().unwrap().to_string();
    assert!(error.contains("start them with the launcher"), "{error}");
}
