//! Records for tests.

use job::metrics::{EpochRecord, Record, StepRecord, SummaryRecord, TestRecord};

pub(super) fn step(step: u64, epoch: usize) -> Record {
    Record::Step(StepRecord {
        step,
        epoch,
        loss: 2.3,
        lr: 0.001,
        images_per_s: None,
        step_ms: 12.5,
        data_ms: Some(0.5),
        comm_exposed_ms: Some(1.25),
        split: None,
        grad_norm: 3.0,
        loss_scaling: None,
    })
}

pub(super) fn epoch(epoch: usize, test_accuracy: f64) -> EpochRecord {
    EpochRecord {
        epoch,
        train_loss: 1.5,
        train_accuracy: 0.45,
        test: Some(TestRecord { test_loss: 1.4, test_accuracy }),
        ema: None,
        seconds: 60.0,
        images_per_s: Some(800.0),
    }
}

pub(super) fn summary() -> Record {
    Record::Summary(SummaryRecord {
        world_size: 2,
        batch_size_per_rank: 64,
        grad_accum_steps: 1,
        steps: 20,
        images_per_s: Some(800.0),
        step_ms_p50: Some(12.0),
        step_ms_p95: Some(15.0),
        seconds_to_first_step: Some(1.5),
        peak_memory_bytes: 1 << 30,
        best_test_accuracy: Some(0.5),
    })
}
