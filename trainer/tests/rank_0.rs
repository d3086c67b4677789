//! Rank 0 may take longer for the disk than ranks wait for each other.

#![allow(clippy::unwrap_used)]

mod common;

use std::cell::Cell;
use std::thread;
use std::time::Duration;

use common::on_ranks_that_wait;
use tch::Device;
use trainer::TrainError;
use trainer::collective::any_rank;
use trainer::rank_0::on_rank_0;

const TIMEOUT: Duration = Duration::from_secs(1);

#[test]
fn ranks_wait_for_rank_0_longer_than_their_deadline() {
    let ended = on_ranks_that_wait(TIMEOUT, 3, |comm| {
        let waited = Cell::new(0);
        let waiting = || waited.set(waited.get() + 1);
        let result = on_rank_0(&*comm, Device::Cpu, waiting, || {
            thread::sleep(3 * TIMEOUT);
            Ok(7)
        });
        comm.finalize().unwrap();
        (result.unwrap(), waited.get() > 0)
    });
    assert_eq!(ended, [(Some(7), false), (None, true), (None, true)]);
}

#[test]
fn what_rank_0_fails_with_is_its_own_and_ends_the_others() {
    let failed = on_ranks_that_wait(TIMEOUT, 2, |comm| {
        let error =
            on_rank_0(&*comm, Device::Cpu, || {}, || Err::<(), _>(full_disk())).unwrap_err();
        comm.abort(&error.to_string(), error.blame());
        error.to_string()
    });
    assert_eq!(failed[0], full_disk().to_string());
    assert!(failed[1].contains("the disk is full"), "{}", failed[1]);
}

#[test]
fn what_one_rank_says_all_of_them_know() {
    for who in 0..2 {
        let said = on_ranks_that_wait(TIMEOUT, 2, |comm| {
            let mine = comm.rank() == who;
            let any = any_rank(&*comm, Device::Cpu, mine).unwrap();
            let none = any_rank(&*comm, Device::Cpu, false).unwrap();
            comm.finalize().unwrap();
            (any, none)
        });
        assert_eq!(said, [(true, false); 2]);
    }
}

fn full_disk() -> TrainError {
    TrainError::Setup("the disk is full".to_owned())
}
