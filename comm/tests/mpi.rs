//! Tests of the MPI backend. Each test starts itself again under `mpirun`, as every rank.
#![allow(clippy::unwrap_used)]

mod common;

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use comm::bootstrap::{Backend, connect};
use comm::env::{StartedBy, World};
use comm::mpi::Session;
use comm::{Blame, BufferMut, CommError, Communicator, ReduceOp, shm};
use common::table::check_all;
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator as _, Destination, Source};

const TIMEOUT: Duration = Duration::from_secs(60);

/// What this process is: the test itself, which has run the ranks and has their output, or one rank.
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

/// Connects a rank as if each machine had `ranks` of them; in fact all are on one machine.
fn over_mpi(world: World, ranks: usize, timeout: Duration) -> Arc<dyn Communicator> {
    let world = World { local_rank: world.rank % ranks, local_world_size: ranks, ..world };
    connect(Backend::Mpi { hierarchical: true }, world, None, timeout).unwrap()
}

fn every_rank_passes(test: &str, machines: usize, ranks: usize, body: impl Fn(&dyn Communicator)) {
    let world_size = machines * ranks;
    match role(test, world_size) {
        Role::Starter { succeeded, output } => {
            assert!(succeeded, "{output}");
            for rank in 0..world_size {
                assert!(output.contains(&format!("rank {rank} passed")), "{output}");
            }
        }
        Role::Rank(world) => {
            let comm = over_mpi(world, ranks, TIMEOUT);
            let shares_memory = comm.alloc_shared(1).unwrap().is_some();
            assert_eq!(shares_memory, machines > 1 && ranks > 1);
            body(&*comm);
            comm.finalize().unwrap();
            println!("rank {} passed", world.rank);
        }
    }
}

#[test]
fn every_collective_is_right_with_1_rank() {
    every_rank_passes("every_collective_is_right_with_1_rank", 1, 1, check_all);
}

#[test]
fn every_collective_is_right_with_2_ranks() {
    every_rank_passes("every_collective_is_right_with_2_ranks", 1, 2, check_all);
}

#[test]
fn every_collective_is_right_with_3_ranks() {
    every_rank_passes("every_collective_is_right_with_3_ranks", 1, 3, check_all);
}

#[test]
fn every_collective_is_right_with_4_ranks() {
    every_rank_passes("every_collective_is_right_with_4_ranks", 1, 4, check_all);
}

#[test]
fn every_collective_is_right_with_2_machines() {
    every_rank_passes("every_collective_is_right_with_2_machines", 2, 2, check_all);
}

#[test]
fn every_collective_is_right_with_3_machines() {
    every_rank_passes("every_collective_is_right_with_3_machines", 3, 2, check_all);
}

#[test]
fn every_collective_is_right_with_3_ranks_a_machine() {
    every_rank_passes("every_collective_is_right_with_3_ranks_a_machine", 2, 3, check_all);
}

#[test]
fn two_communicators_of_one_process_end_one_after_the_other() {
    let test = "two_communicators_of_one_process_end_one_after_the_other";
    every_rank_passes(test, 2, 2, |flat| {
        let other = over_mpi(World::from_env().unwrap(), 1, TIMEOUT);
        let mut data = [1_i64];
        other.all_reduce(BufferMut::host(&mut data), ReduceOp::Sum).unwrap();
        other.finalize().unwrap();
        flat.all_reduce(BufferMut::host(&mut data), ReduceOp::Sum).unwrap();
        assert_eq!(data, [16]);
    });
}

#[test]
fn shared_memory_finds_its_ranks_over_mpi() {
    every_rank_passes("shared_memory_finds_its_ranks_over_mpi", 1, 3, |comm| {
        let store = Session::get().unwrap().store();
        let shm = shm::connect(comm.rank(), 0..comm.world_size(), &store, "shm", TIMEOUT).unwrap();
        let mut data = [shm.rank() as i64; 5];
        shm.all_reduce(BufferMut::host(&mut data), ReduceOp::Sum).unwrap();
        assert_eq!(data, [3; 5]);
        shm.finalize().unwrap();
    });
}

/// Runs a test whose ranks all fail: they do not finalize MPI, and `mpirun` ends the job with a failure.
fn every_rank_fails_as_it_should(
    test: &str,
    [machines, ranks]: [usize; 2],
    timeout: Duration,
    body: impl Fn(&dyn Communicator),
) {
    match role(test, machines * ranks) {
        Role::Starter { output, .. } => {
            for rank in 0..machines * ranks {
                assert!(output.contains(&format!("rank {rank} failed as it should")), "{output}");
            }
        }
        Role::Rank(world) => {
            let comm = over_mpi(world, ranks, timeout);
            body(&*comm);
            println!("rank {} failed as it should", world.rank);
            // No rank leaves before all have seen the error that they wait for.
            let world = SimpleCommunicator::world();
            mpi::traits::CommunicatorCollectives::barrier(&world);
            std::process::exit(1);
        }
    }
}

#[test]
fn a_deadline_ends_the_wait_for_a_late_rank() {
    let test = "a_deadline_ends_the_wait_for_a_late_rank";
    every_rank_fails_as_it_should(test, [1, 3], Duration::from_secs(2), |comm| {
        let world = SimpleCommunicator::world();
        let mut token = [0_u8; 1];
        if comm.rank() == 0 {
            let error = comm.all_reduce(BufferMut::host(&mut [1.0_f32]), ReduceOp::Sum).err();
            assert!(matches!(error, Some(CommError::Timeout { sequence: 0, .. })), "{error:?}");
            (1..world.size()).for_each(|peer| world.process_at_rank(peer).send(&token));
        } else {
            // Late: it calls the collective only after rank 0 has timed out, and learns why that failed.
            world.process_at_rank(0).receive_into(&mut token);
            let error = comm.barrier().err();
            assert!(matches!(error, Some(CommError::Aborted { by: 0, .. })), "{error:?}");
        }
    });
}

#[test]
fn a_late_rank_is_named_on_all_machines() {
    let test = "a_late_rank_is_named_on_all_machines";
    every_rank_fails_as_it_should(test, [2, 2], Duration::from_secs(2), |comm| {
        let world = SimpleCommunicator::world();
        let mut token = [0_u8; 1];
        let late = 3;
        if comm.rank() == late {
            world.process_at_rank(2).receive_into(&mut token);
        }
        let error = comm.all_reduce(BufferMut::host(&mut [1.0_f32; 9]), ReduceOp::Sum).unwrap_err();
        match &error {
            CommError::Timeout { rank: 2, missing, .. } if comm.rank() == 2 => {
                assert_eq!(missing, &[late]);
                world.process_at_rank(late as i32).send(&token);
            }
            CommError::Aborted { by: 2, reason, blame } => {
                assert_eq!(*blame, Blame::Late(vec![late]));
                assert!(
                    reason.contains("rank 2 waited") && reason.contains("for rank 3"),
                    "{reason}"
                );
            }
            _ => panic!("rank {}: {error}", comm.rank()),
        }
    });
}

fn signal(pid: i32, signal: i32) {
    // SAFETY: plain call.
    assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
}

/// A rank is frozen while it exchanges data with the other machine. Ranks there wait for it too, but only the
/// ranks of its own machine can name it.
#[test]
fn a_rank_that_freezes_between_machines_is_named_and_none_that_waits_for_it() {
    let test = "a_rank_that_freezes_between_machines_is_named_and_none_that_waits_for_it";
    every_rank_fails_as_it_should(test, [2, 2], Duration::from_secs(2), |comm| {
        let (frozen, mate) = (2, 3);
        let world = SimpleCommunicator::world();
        let mut pid = [std::process::id() as i32];
        let mut data = vec![1.0_f32; 32 << 20];
        if comm.rank() == frozen {
            world.process_at_rank(mate as i32).send(&pid);
        } else if comm.rank() == mate {
            world.process_at_rank(frozen as i32).receive_into(&mut pid);
            std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(400));
                signal(pid[0], libc::SIGSTOP);
            });
        }
        let all_reduce = |data: &mut [f32]| comm.all_reduce(BufferMut::host(data), ReduceOp::Sum);
        let error = (0..100).find_map(|_| all_reduce(&mut data).err()).unwrap();
        match &error {
            CommError::Timeout { rank: 3, missing, .. } if comm.rank() == mate => {
                assert_eq!(missing, &[frozen]);
                // Resumed, the rank learns why the job failed, and can exit.
                signal(pid[0], libc::SIGCONT);
            }
            CommError::Aborted { by: 3, reason, blame } => {
                assert_eq!(*blame, Blame::Late(vec![frozen]));
                assert!(reason.contains("rank 3 waited"), "{reason}");
                assert!(reason.contains("for rank 2"), "{reason}");
            }
            _ => panic!("rank {}: {error}", comm.rank()),
        }
    });
}

#[test]
fn different_calls_on_one_machine_are_named_on_all() {
    let test = "different_calls_on_one_machine_are_named_on_all";
    every_rank_fails_as_it_should(test, [2, 2], TIMEOUT, |comm| {
        let mut data = vec![1.0_f32; if comm.rank() == 3 { 4 } else { 5 }];
        let error = comm.all_reduce(BufferMut::host(&mut data), ReduceOp::Sum).unwrap_err();
        match &error {
            CommError::Mismatch { rank, peer: 2 | 3, .. } => assert_eq!(*rank, comm.rank()),
            CommError::Aborted { by: 2 | 3, reason, blame: Blame::Nobody } => {
                assert!(reason.contains("ranks disagree"), "{reason}");
            }
            _ => panic!("rank {}: {error}", comm.rank()),
        }
    });
}

fn an_abort_reaches_all(comm: &dyn Communicator, by: usize) {
    if comm.rank() == by {
        // By then the others wait, some of them in shared memory.
        std::thread::sleep(Duration::from_millis(300));
        comm.abort("loss is not finite", Blame::Nobody);
    }
    let error = comm.all_reduce(BufferMut::host(&mut [1.0_f32; 9]), ReduceOp::Sum).unwrap_err();
    assert_eq!(error.to_string(), format!("rank {by} aborted the job: loss is not finite"));
}

#[test]
fn an_abort_reaches_ranks_that_wait() {
    let test = "an_abort_reaches_ranks_that_wait";
    every_rank_fails_as_it_should(test, [1, 3], TIMEOUT, |comm| an_abort_reaches_all(comm, 0));
}

#[test]
fn an_abort_reaches_ranks_that_wait_on_other_machines() {
    let test = "an_abort_reaches_ranks_that_wait_on_other_machines";
    every_rank_fails_as_it_should(test, [2, 2], TIMEOUT, |comm| an_abort_reaches_all(comm, 3));
}
