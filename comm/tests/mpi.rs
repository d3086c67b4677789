//! The MPI backend. Each test starts itself again under `mpirun`, as every rank.
#![allow(clippy::unwrap_used)]

mod common;

use std::process::Command;
use std::time::Duration;

use comm::bootstrap::{Backend, connect};
use comm::env::{StartedBy, World};
use comm::mpi::Session;
use comm::{BufferMut, CommError, Communicator, ReduceOp, shm};
use common::table::check_all;
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator as _, Destination, Source};

const TIMEOUT: Duration = Duration::from_secs(60);

/// In the test itself: starts `world_size` ranks and gives what they print. In a rank: its place.
enum Role {
    Starter { succeeded: bool, output: String },
    Rank(World),
}

fn role(test: &str, world_size: usize) -> Role {
    let world = World::from_env().unwrap();
    if world.started_by == StartedBy::Mpirun {
        return Role::Rank(world);
    }
    let output = Command::new(env!("LOCKSTEP_MPIRUN"))
        .args(["--oversubscribe", "-n", &world_size.to_string()])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env("OMPI_ALLOW_RUN_AS_ROOT", "1")
        .env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    let output_text = String::from_utf8_lossy(&text).into_owned();
    Role::Starter { succeeded: output.status.success(), output: output_text }
}

fn every_rank_passes(test: &str, world_size: usize, body: impl Fn(&dyn Communicator)) {
    match role(test, world_size) {
        Role::Starter { succeeded, output } => {
            assert!(succeeded, "{output}");
            for rank in 0..world_size {
                assert!(output.contains(&format!("rank {rank} passed")), "{output}");
            }
        }
        Role::Rank(world) => {
            let comm = connect(Backend::Mpi, world, None, TIMEOUT).unwrap();
            body(&*comm);
            comm.finalize().unwrap();
            println!("rank {} passed", world.rank);
        }
    }
}

#[test]
fn every_collective_is_right_with_1_rank() {
    every_rank_passes("every_collective_is_right_with_1_rank", 1, check_all);
}

#[test]
fn every_collective_is_right_with_2_ranks() {
    every_rank_passes("every_collective_is_right_with_2_ranks", 2, check_all);
}

#[test]
fn every_collective_is_right_with_3_ranks() {
    every_rank_passes("every_collective_is_right_with_3_ranks", 3, check_all);
}

#[test]
fn every_collective_is_right_with_4_ranks() {
    every_rank_passes("every_collective_is_right_with_4_ranks", 4, check_all);
}

#[test]
fn shared_memory_finds_its_ranks_over_mpi() {
    every_rank_passes("shared_memory_finds_its_ranks_over_mpi", 3, |comm| {
        let store = Session::get().unwrap().store();
        let shm = shm::connect(comm.rank(), comm.world_size(), &store, "shm", TIMEOUT).unwrap();
        let mut data = [shm.rank() as i64; 5];
        shm.all_reduce(BufferMut::host(&mut data), ReduceOp::Sum).unwrap();
        assert_eq!(data, [3; 5]);
        shm.finalize().unwrap();
    });
}

/// A rank that has failed does not finalize MPI, and `mpirun` ends the job with a failure.
fn every_rank_fails_as_it_should(test: &str, timeout: Duration, body: impl Fn(&dyn Communicator)) {
    match role(test, 3) {
        Role::Starter { output, .. } => {
            // The first to leave may take the others with it.
            assert!(output.contains("failed as it should"), "{output}");
            assert!(!output.contains("panicked"), "{output}");
        }
        Role::Rank(world) => {
            let comm = connect(Backend::Mpi, world, None, timeout).unwrap();
            body(&*comm);
            println!("rank {} failed as it should", world.rank);
            // Nobody leaves before all have seen what they wait for.
            let world = SimpleCommunicator::world();
            mpi::traits::CommunicatorCollectives::barrier(&world);
            std::process::exit(1);
        }
    }
}

#[test]
fn a_deadline_ends_the_wait_for_a_late_rank() {
    let test = "a_deadline_ends_the_wait_for_a_late_rank";
    every_rank_fails_as_it_should(test, Duration::from_millis(300), |comm| {
        let world = SimpleCommunicator::world();
        let mut token = [0_u8; 1];
        if comm.rank() == 0 {
            let error = comm.all_reduce(BufferMut::host(&mut [1.0_f32]), ReduceOp::Sum).err();
            assert!(matches!(error, Some(CommError::Timeout { sequence: 0, .. })), "{error:?}");
            (1..world.size()).for_each(|peer| world.process_at_rank(peer).send(&token));
        } else {
            // Late: it comes when rank 0 has given up, and learns why.
            world.process_at_rank(0).receive_into(&mut token);
            let error = comm.barrier().err();
            assert!(matches!(error, Some(CommError::Aborted { by: 0, .. })), "{error:?}");
        }
    });
}

#[test]
fn an_abort_reaches_ranks_that_wait() {
    every_rank_fails_as_it_should("an_abort_reaches_ranks_that_wait", TIMEOUT, |comm| {
        if comm.rank() == 0 {
            comm.abort("loss is not finite");
        }
        let error = comm.barrier().unwrap_err();
        assert_eq!(error.to_string(), "rank 0 aborted the job: loss is not finite");
    });
}
