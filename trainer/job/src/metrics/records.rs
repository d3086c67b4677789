//! The records of `metrics.jsonl`. Scripts rely on their keys.

use serde::{Deserialize, Deserializer, Serialize};
use time::OffsetDateTime;

/// One line of `metrics.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Record {
    /// Means over a number of steps.
    Step(StepRecord),
    /// An epoch and the evaluation after it.
    Epoch(EpochRecord),
    /// Totals of a process that trained to the end.
    Summary(SummaryRecord),
}

/// A record with its time, as it is in the file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Timed<R = Record> {
    /// The record.
    #[serde(flatten)]
    pub record: R,
    /// Time at which the record was written, in UTC.
    #[serde(with = "time::serde::rfc3339")]
    pub time: OffsetDateTime,
}

impl Record {
    /// Returns the epoch's record, if this is one.
    pub fn into_epoch(self) -> Option<EpochRecord> {
        match self {
            Self::Epoch(epoch) => Some(epoch),
            _ => None,
        }
    }
}

/// Means over the steps since the previous step record, and over all ranks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// Number of optimizer updates since the start of the run.
    pub step: u64,
    /// Epoch, from 1.
    pub epoch: usize,
    /// Mean loss over the samples of all ranks.
    #[serde(deserialize_with = "null_is_nan")]
    pub loss: f64,
    /// Learning rate of the last step.
    #[serde(deserialize_with = "null_is_nan")]
    pub lr: f64,
    /// Images per second of all ranks together; `None` during the first [`WARMUP_STEPS`](super::WARMUP_STEPS)
    /// of a process.
    pub images_per_s: Option<f64>,
    /// Milliseconds per step.
    #[serde(deserialize_with = "null_is_nan")]
    pub step_ms: f64,
    /// Milliseconds of a step spent on making the batch. `None` on a GPU, where the host cannot observe when
    /// that begins and ends.
    pub data_ms: Option<f64>,
    /// Milliseconds of a step spent waiting for gradients of other ranks. `None` on a GPU, as `data_ms`.
    pub comm_exposed_ms: Option<f64>,
    /// Further parts of a step's time, on the CPU only.
    #[serde(flatten)]
    pub split: Option<StepSplit>,
    /// Euclidean norm of the averaged gradient of the last step.
    #[serde(deserialize_with = "null_is_nan")]
    pub grad_norm: f64,
    /// State of loss scaling, with `precision: fp16` only.
    #[serde(flatten)]
    pub loss_scaling: Option<LossScaling>,
}

/// Loss scaling, which keeps small gradients from underflowing in half precision.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LossScaling {
    /// Factor of the next step's loss.
    pub loss_scale: f64,
    /// Number of steps since the start of the run that were skipped because a gradient overflowed. If the
    /// last step is one of them, its `grad_norm` is `null`.
    pub skipped_steps: u64,
}

/// Parts of a step's time on CPU ranks, as means over steps and ranks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepSplit {
    /// Milliseconds of `comm_exposed_ms` spent waiting until the slowest rank had its gradients.
    pub skew_ms: f64,
    /// Milliseconds of the forward pass and the loss.
    pub forward_ms: f64,
    /// Milliseconds of the backward pass of a rank.
    pub backward_ms: f64,
    /// Milliseconds of the optimizer's update.
    pub optimizer_ms: f64,
    /// Milliseconds of each single step, of which `step_ms` is the mean.
    pub each_step_ms: Vec<f64>,
}

/// An epoch, and the evaluation after it if there was one. Losses and accuracies are means over all samples
/// of all ranks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EpochRecord {
    /// Epoch, from 1.
    pub epoch: usize,
    /// Mean training loss in nats, as it is minimised: with label smoothing and mixed targets if these are
    /// configured.
    #[serde(deserialize_with = "null_is_nan")]
    pub train_loss: f64,
    /// Training accuracy as a fraction; a mixed image counts as of the class of its larger part.
    #[serde(deserialize_with = "null_is_nan")]
    pub train_accuracy: f64,
    /// Results on the test images; `None` for an epoch without evaluation (`eval.every_epochs`).
    #[serde(flatten)]
    pub test: Option<TestRecord>,
    /// Results of the averaged weights, with `train.ema_decay` only.
    #[serde(flatten)]
    pub ema: Option<EmaRecord>,
    /// Seconds of training, without the evaluation.
    #[serde(deserialize_with = "null_is_nan")]
    pub seconds: f64,
    /// Images per second of all ranks together during training, without the first 10 steps of a process;
    /// `None` if the epoch has no other steps.
    pub images_per_s: Option<f64>,
}

/// Results of the weights on the test images.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct TestRecord {
    /// Mean loss in nats.
    #[serde(deserialize_with = "null_is_nan")]
    pub test_loss: f64,
    /// Accuracy as a fraction.
    #[serde(deserialize_with = "null_is_nan")]
    pub test_accuracy: f64,
}

/// Results of the averaged weights on the test images.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct EmaRecord {
    /// Mean loss in nats.
    #[serde(deserialize_with = "null_is_nan")]
    pub ema_test_loss: f64,
    /// Accuracy as a fraction.
    #[serde(deserialize_with = "null_is_nan")]
    pub ema_test_accuracy: f64,
}

/// Totals of one process of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SummaryRecord {
    /// Number of ranks.
    pub world_size: usize,
    /// Images per microbatch of a rank. Times `grad_accum_steps` it is a rank's part of a step.
    pub batch_size_per_rank: usize,
    /// Microbatches per step.
    pub grad_accum_steps: usize,
    /// Number of optimizer updates since the start of the run.
    pub steps: u64,
    /// Images per second of all ranks together, without the first 10 steps; `None` if there were no other
    /// steps.
    pub images_per_s: Option<f64>,
    /// Median duration of a step, in milliseconds.
    pub step_ms_p50: Option<f64>,
    /// 95th percentile of the duration of a step, in milliseconds.
    pub step_ms_p95: Option<f64>,
    /// Seconds from reading the configuration to the end of the first step.
    pub seconds_to_first_step: Option<f64>,
    /// Peak memory of rank 0 in bytes: on the CPU all of the process, on a GPU what libtorch's allocator
    /// reserved.
    pub peak_memory_bytes: u64,
    /// Best test accuracy as a fraction; `None` before the first evaluation.
    pub best_test_accuracy: Option<f64>,
}

/// Reads `null` as NaN: JSON has neither NaN nor infinity, so they are written as `null`.
fn null_is_nan<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::metrics) fn step(step: u64, epoch: usize) -> Record {
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

    fn step_on_a_gpu() -> Record {
        let Record::Step(record) = step(10, 1) else { unreachable!() };
        Record::Step(StepRecord { data_ms: None, comm_exposed_ms: None, ..record })
    }

    fn step_in_fp16() -> Record {
        let Record::Step(record) = step(30, 1) else { unreachable!() };
        let loss_scaling = Some(LossScaling { loss_scale: 32768.0, skipped_steps: 1 });
        Record::Step(StepRecord { loss_scaling, ..record })
    }

    fn step_with_split() -> Record {
        let Record::Step(record) = step(20, 1) else { unreachable!() };
        let split = StepSplit {
            skew_ms: 0.75,
            forward_ms: 4.0,
            backward_ms: 6.0,
            optimizer_ms: 0.5,
            each_step_ms: vec![12.0, 13.0],
        };
        Record::Step(StepRecord { split: Some(split), ..record })
    }

    fn epoch(epoch: usize, test_accuracy: f64) -> EpochRecord {
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

    fn epoch_with_ema() -> EpochRecord {
        let ema = Some(EmaRecord { ema_test_loss: 1.25, ema_test_accuracy: 0.625 });
        EpochRecord { ema, ..epoch(2, 0.6) }
    }

    fn summary() -> Record {
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

    #[test]
    fn records_have_the_documented_keys_in_their_order() {
        let lines = [
            (
                step(10, 1),
                r#"{"kind":"step","step":10,"epoch":1,"loss":2.3,"lr":0.001,"images_per_s":null,"#
                    .to_string()
                    + r#""step_ms":12.5,"data_ms":0.5,"comm_exposed_ms":1.25,"grad_norm":3.0}"#,
            ),
            (
                step_on_a_gpu(),
                r#"{"kind":"step","step":10,"epoch":1,"loss":2.3,"lr":0.001,"images_per_s":null,"#
                    .to_string()
                    + r#""step_ms":12.5,"data_ms":null,"comm_exposed_ms":null,"grad_norm":3.0}"#,
            ),
            (
                step_with_split(),
                r#"{"kind":"step","step":20,"epoch":1,"loss":2.3,"lr":0.001,"images_per_s":null,"#
                    .to_string()
                    + r#""step_ms":12.5,"data_ms":0.5,"comm_exposed_ms":1.25,"skew_ms":0.75,"#
                    + r#""forward_ms":4.0,"backward_ms":6.0,"optimizer_ms":0.5,"#
                    + r#""each_step_ms":[12.0,13.0],"grad_norm":3.0}"#,
            ),
            (
                step_in_fp16(),
                r#"{"kind":"step","step":30,"epoch":1,"loss":2.3,"lr":0.001,"images_per_s":null,"#
                    .to_string()
                    + r#""step_ms":12.5,"data_ms":0.5,"comm_exposed_ms":1.25,"grad_norm":3.0,"#
                    + r#""loss_scale":32768.0,"skipped_steps":1}"#,
            ),
            (
                Record::Epoch(epoch(1, 0.5)),
                r#"{"kind":"epoch","epoch":1,"train_loss":1.5,"train_accuracy":0.45,"test_loss":1.4"#
                    .to_string()
                    + r#","test_accuracy":0.5,"seconds":60.0,"images_per_s":800.0}"#,
            ),
            (
                Record::Epoch(EpochRecord { test: None, ..epoch(3, 0.0) }),
                r#"{"kind":"epoch","epoch":3,"train_loss":1.5,"train_accuracy":0.45,"#.to_string()
                    + r#""seconds":60.0,"images_per_s":800.0}"#,
            ),
            (
                Record::Epoch(epoch_with_ema()),
                r#"{"kind":"epoch","epoch":2,"train_loss":1.5,"train_accuracy":0.45,"test_loss":1.4"#
                    .to_string()
                    + r#","test_accuracy":0.6,"ema_test_loss":1.25,"ema_test_accuracy":0.625,"#
                    + r#""seconds":60.0,"images_per_s":800.0}"#,
            ),
            (
                summary(),
                r#"{"kind":"summary","world_size":2,"batch_size_per_rank":64,"grad_accum_steps":1,"steps":20,"#
                    .to_string()
                    + r#""images_per_s":800.0,"step_ms_p50":12.0,"step_ms_p95":15.0,"#
                    + r#""seconds_to_first_step":1.5,"peak_memory_bytes":1073741824,"#
                    + r#""best_test_accuracy":0.5}"#,
            ),
        ];
        for (record, line) in lines {
            assert_eq!(serde_json::to_string(&record).unwrap(), line);
            assert_eq!(serde_json::from_str::<Record>(&line).unwrap(), record);
        }
    }

    #[test]
    fn a_loss_that_is_no_number_can_be_read_back() {
        let line = serde_json::to_string(&Record::Epoch(epoch(1, f64::NAN))).unwrap();
        let read: Record = serde_json::from_str(&line).unwrap();
        assert!(read.into_epoch().unwrap().test.unwrap().test_accuracy.is_nan());
    }
}
