//! The records of `metrics.jsonl`. Scripts rely on their keys.

use serde::{Deserialize, Deserializer, Serialize};
use time::OffsetDateTime;

/// A line of `metrics.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Record {
    /// Some steps.
    Step(StepRecord),
    /// An epoch and the evaluation after it.
    Epoch(EpochRecord),
    /// A process that trained to the end.
    Summary(SummaryRecord),
}

/// A record as it stands in the file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Timed<R = Record> {
    /// What was written.
    #[serde(flatten)]
    pub record: R,
    /// When, in UTC.
    #[serde(with = "time::serde::rfc3339")]
    pub time: OffsetDateTime,
}

impl Record {
    /// The epoch's record, if it is one.
    pub fn into_epoch(self) -> Option<EpochRecord> {
        match self {
            Self::Epoch(epoch) => Some(epoch),
            _ => None,
        }
    }
}

/// The steps since the last such record: means over them, of all ranks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// Optimizer updates since the start of the run.
    pub step: u64,
    /// From 1.
    pub epoch: usize,
    /// Mean over the samples of all ranks.
    #[serde(deserialize_with = "null_is_nan")]
    pub loss: f64,
    /// The learning rate of the last step.
    #[serde(deserialize_with = "null_is_nan")]
    pub lr: f64,
    /// Over all ranks; `None` during the first steps of a process.
    pub images_per_s: Option<f64>,
    /// Milliseconds a step.
    #[serde(deserialize_with = "null_is_nan")]
    pub step_ms: f64,
    /// Of these: making the batch. `None` on a GPU, where the host does not see when that begins and ends.
    pub data_ms: Option<f64>,
    /// Of these: waiting for gradients of other ranks; likewise.
    pub comm_exposed_ms: Option<f64>,
    /// On the CPU, more of where the time went.
    #[serde(flatten)]
    pub split: Option<StepSplit>,
    /// The Euclidean norm of the averaged gradient, of the last step.
    #[serde(deserialize_with = "null_is_nan")]
    pub grad_norm: f64,
    /// With `precision: fp16`, how losses are scaled.
    #[serde(flatten)]
    pub loss_scaling: Option<LossScaling>,
}

/// How losses are scaled so that small gradients survive half precision.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LossScaling {
    /// What the next step's loss is multiplied by.
    pub loss_scale: f64,
    /// Of the steps since the start of the run, those that changed no weight since a gradient
    /// overflowed. The last step's `grad_norm` is `null` if it was one of them.
    pub skipped_steps: u64,
}

/// Parts of steps on CPU ranks, means over ranks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepSplit {
    /// Of `comm_exposed_ms`: waiting until the slowest rank had its gradients.
    pub skew_ms: f64,
    /// From the images to the loss.
    pub forward_ms: f64,
    /// From the loss to the gradients of a rank.
    pub backward_ms: f64,
    /// Changing the weights.
    pub optimizer_ms: f64,
    /// Of each step by itself, what `step_ms` is the mean of.
    pub each_step_ms: Vec<f64>,
}

/// An epoch, and the evaluation after it where there was one. Losses and accuracies are means over all
/// samples of all ranks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EpochRecord {
    /// From 1.
    pub epoch: usize,
    /// While training, in nats: what is minimised, with smoothed and mixed targets where they are.
    #[serde(deserialize_with = "null_is_nan")]
    pub train_loss: f64,
    /// While training, a fraction; a mixed image is of the class of its larger part.
    #[serde(deserialize_with = "null_is_nan")]
    pub train_accuracy: f64,
    /// `None` where `eval.every_epochs` leaves the epoch out.
    #[serde(flatten)]
    pub test: Option<TestRecord>,
    /// With `train.ema_decay`, what averaged weights reach.
    #[serde(flatten)]
    pub ema: Option<EmaRecord>,
    /// Of training, without the evaluation.
    #[serde(deserialize_with = "null_is_nan")]
    pub seconds: f64,
    /// Over all ranks, while training, without the first 10 steps of a process; `None` where there
    /// were no more.
    pub images_per_s: Option<f64>,
}

/// What the weights reach on the test images.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct TestRecord {
    /// In nats.
    #[serde(deserialize_with = "null_is_nan")]
    pub test_loss: f64,
    /// A fraction.
    #[serde(deserialize_with = "null_is_nan")]
    pub test_accuracy: f64,
}

/// What averaged weights reach on the test images.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct EmaRecord {
    /// In nats.
    #[serde(deserialize_with = "null_is_nan")]
    pub ema_test_loss: f64,
    /// A fraction.
    #[serde(deserialize_with = "null_is_nan")]
    pub ema_test_accuracy: f64,
}

/// A process of a run as a whole.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SummaryRecord {
    /// How many ranks trained.
    pub world_size: usize,
    /// Images that a rank puts through the network at once; times `grad_accum_steps` it is a rank's part of
    /// a step.
    pub batch_size_per_rank: usize,
    /// Microbatches a step.
    pub grad_accum_steps: usize,
    /// Optimizer updates since the start of the run.
    pub steps: u64,
    /// Over all ranks, without the first 10 steps; `None` where there were no more.
    pub images_per_s: Option<f64>,
    /// The median, in milliseconds.
    pub step_ms_p50: Option<f64>,
    /// 95 % of steps take no longer, in milliseconds.
    pub step_ms_p95: Option<f64>,
    /// From reading the configuration to the end of the first step.
    pub seconds_to_first_step: Option<f64>,
    /// The most memory that rank 0 used: on the CPU all of it, on a GPU what libtorch reserved.
    pub peak_memory_bytes: u64,
    /// A fraction; `None` before the first evaluation.
    pub best_test_accuracy: Option<f64>,
}

/// JSON has no NaN and no infinity: they are written as `null`.
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
