//! Tests of the shared-memory backend, with ranks that are processes and may be killed.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use comm::{Blame, BufferMut, CommError, Communicator, ReduceOp};
use common::processes::{Ranks, as_rank, connect, report, wait_for_release};
use common::table::check_all;

const TIMEOUT: Duration = Duration::from_secs(60);

fn every_collective_is_right(test: &str, world_size: usize) {
    let Some(world) = as_rank() else { return Ranks::start(test, world_size).all_pass() };
    let comm = connect(world, TIMEOUT);
    check_all(&comm);
    comm.finalize().unwrap();
}

#[test]
fn every_collective_is_right_between_2_processes() {
    every_collective_is_right("every_collective_is_right_between_2_processes", 2);
}

#[test]
fn every_collective_is_right_between_3_processes() {
    every_collective_is_right("every_collective_is_right_between_3_processes", 3);
}

#[test]
fn a_killed_rank_is_named() {
    let Some(world) = as_rank() else {
        let mut ranks = Ranks::start("a_killed_rank_is_named", 3);
        for process in &mut ranks.processes {
            process.reports("connected");
        }
        ranks.processes[2].kill();
        let pid = ranks.processes[2].pid();
        // A rank that was slow to begin is told so by the other one.
        for rank in 0..2 {
            ranks.processes[rank]
                .reports(&format!("rank 2 (process {pid}) is gone; all_reduce #1 cannot complete"));
            ranks.processes[rank].passes(rank);
        }
        return;
    };
    let comm = connect(world, TIMEOUT);
    comm.barrier().unwrap();
    report("connected");
    if world.rank == 2 {
        wait_for_release();
    }
    let error = comm.all_reduce(BufferMut::host(&mut [1.0_f32]), ReduceOp::Sum).unwrap_err();
    report(&error.to_string());
}

#[test]
fn a_rank_killed_in_the_middle_of_transfers_is_named() {
    let Some(world) = as_rank() else {
        let mut ranks = Ranks::start("a_rank_killed_in_the_middle_of_transfers_is_named", 3);
        ranks.processes[1].reports("moving");
        ranks.processes[1].kill();
        ranks.processes[0].passes(0);
        ranks.processes[2].passes(2);
        return;
    };
    let comm = connect(world, TIMEOUT);
    let mut data = vec![0.0_f32; 3_000_000];
    let error = loop {
        if let Err(error) = comm.all_reduce(BufferMut::host(&mut data), ReduceOp::Max) {
            break error;
        }
        report("moving");
    };
    // The first of the two to notice publishes the failure, so the other may not notice it itself.
    assert_eq!(error.blame(), Blame::Failed(1));
    match error {
        CommError::PeerGone { rank: 1, .. } => {}
        CommError::Aborted { reason, .. } => {
            assert!(reason.contains("rank 1 (process"), "{reason}")
        }
        other => panic!("{other}"),
    }
}

#[test]
fn a_late_rank_is_named() {
    let Some(world) = as_rank() else {
        let mut ranks = Ranks::start("a_late_rank_is_named", 3);
        for rank in [0, 2] {
            ranks.processes[rank].passes(rank);
        }
        ranks.processes[1].release();
        ranks.processes[1].passes(1);
        return;
    };
    let comm = connect(world, Duration::from_millis(500));
    comm.all_reduce(BufferMut::host(&mut [1.0_f64; 9]), ReduceOp::Mean).unwrap();
    if world.rank == 1 {
        wait_for_release();
        let error = comm.barrier().unwrap_err();
        assert!(matches!(error, CommError::Aborted { by: 0 | 2, .. }), "{error}");
        assert_eq!(error.blame(), Blame::Late(vec![1]));
        return;
    }
    let error = comm.barrier().unwrap_err();
    let CommError::Timeout { missing, detail, .. } = error else { panic!("{error}") };
    assert_eq!(missing, [1]);
    assert_eq!(detail, "rank 1 last joined all_reduce(mean) of 9 x f64, #0");
}

#[test]
fn an_abort_reaches_every_process() {
    let Some(world) = as_rank() else {
        return Ranks::start("an_abort_reaches_every_process", 4).all_pass();
    };
    let comm = connect(world, TIMEOUT);
    if world.rank == 3 {
        comm.abort("out of memory", Blame::Nobody);
    }
    let error = comm.barrier().unwrap_err();
    assert_eq!(error.to_string(), "rank 3 aborted the job: out of memory");
    assert_eq!(error.blame(), Blame::Failed(3));
}

#[test]
fn a_mismatch_names_both_sides() {
    let Some(world) = as_rank() else {
        return Ranks::start("a_mismatch_names_both_sides", 2).all_pass();
    };
    let comm = connect(world, TIMEOUT);
    let calls = ["all_reduce(sum) of 3 x f32", "broadcast(from rank 1) of 3 x f32"];
    let mut data = [0.0_f32; 3];
    let result = match world.rank {
        0 => comm.all_reduce(BufferMut::host(&mut data), ReduceOp::Sum),
        _ => comm.broadcast(BufferMut::host(&mut data), 1),
    };
    let (mine, other) = (world.rank, 1 - world.rank);
    let expected = format!(
        "ranks disagree at collective #0: rank {mine} called {}, rank {other} called {}",
        calls[mine], calls[other]
    );
    assert_eq!(result.unwrap_err().to_string(), expected);
}
