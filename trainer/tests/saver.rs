//! What happens to a run whose disk refuses a checkpoint; `launcher/tests/end_to_end.rs` tests it on a real
//! disk.

#![allow(clippy::unwrap_used)]

mod common;

use std::cell::Cell;
use std::time::Duration;

use common::on_ranks_that_wait;
use job::config;
use tch::Device;
use trainer::checkpoint::CheckpointError;
use trainer::saver::{OnWriteError, Saver, Waiting};
use trainer::{Result, TrainError};

const TIMEOUT: Duration = Duration::from_secs(1);

fn full_disk() -> TrainError {
    let reason = "No space left on device".to_owned();
    TrainError::Checkpoint(CheckpointError::Io { action: "write", path: "a".into(), reason })
}

fn saver(retry_minutes: u64) -> Saver {
    Saver::new(&config::Checkpoint { retry_minutes, ..config::Checkpoint::default() })
}

const WAITING: Waiting<'_> = Waiting { beat: &|| {}, asked_to_stop: &|| false };

#[test]
fn training_goes_on_without_a_checkpoint_and_every_rank_knows_that_it_is_overdue() {
    let behind = on_ranks_that_wait(TIMEOUT, 2, |comm| {
        let mut saver = saver(60);
        let mut save = |result: fn() -> Result<()>| {
            saver.save(&*comm, Device::Cpu, OnWriteError::GoOn, &WAITING, result).unwrap();
            saver.is_behind()
        };
        let behind = (save(|| Err(full_disk())), save(|| Ok(())));
        comm.finalize().unwrap();
        behind
    });
    assert_eq!(behind, [(true, false); 2]);
}

#[test]
fn the_end_of_a_run_waits_for_room_as_long_as_nobody_asks_to_stop() {
    let cases = [
        (OnWriteError::Wait, 60, false, 3),
        (OnWriteError::Wait, 60, true, 1),
        (OnWriteError::Wait, 0, false, 1),
        (OnWriteError::End, 60, false, 1),
    ];
    for (on_write_error, minutes, asked, tries) in cases {
        // Two tries take longer than the ranks wait for each other.
        let tried = on_ranks_that_wait(TIMEOUT, 2, |comm| {
            let tried = Cell::new(0);
            let waiting = Waiting { asked_to_stop: &|| asked, ..WAITING };
            let write = || {
                tried.set(tried.get() + 1);
                if tried.get() == 3 { Ok(()) } else { Err(full_disk()) }
            };
            let ended = saver(minutes).save(&*comm, Device::Cpu, on_write_error, &waiting, write);
            match &ended {
                Ok(()) => comm.finalize().unwrap(),
                Err(error) => comm.abort(&error.to_string(), error.blame()),
            }
            (ended.is_ok(), tried.get())
        });
        assert_eq!(
            tried,
            [(tries == 3, tries), (tries == 3, 0)],
            "{on_write_error:?}, {minutes} min"
        );
    }
}

#[test]
fn what_is_no_fault_of_the_disk_ends_the_run() {
    let ended = on_ranks_that_wait(TIMEOUT, 1, |comm| {
        let bug = || Err(TrainError::Panic("index out of bounds".to_owned()));
        let ended = saver(60).save(&*comm, Device::Cpu, OnWriteError::GoOn, &WAITING, bug);
        ended.unwrap_err().to_string()
    });
    assert_eq!(ended, ["panic: index out of bounds"]);
}
