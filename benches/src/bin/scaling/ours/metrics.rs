//! Computes a run's measurements from its `metrics.jsonl`. Pure.

use job::metrics::{EpochRecord, Record, StepRecord, SummaryRecord, Timed, WARMUP_STEPS};
use serde_json::Value;
use time::OffsetDateTime;

use crate::accuracy::EpochEnd;
use crate::energy::seconds;
use crate::error::{BenchError, Result};
use crate::record::{Measured, Split};

/// A record of steps, with the time at which it was written.
type Steps = Timed<StepRecord>;

/// Returns when the first step began, computed from the first record.
fn first_step_began(Timed { record, time }: &Steps) -> OffsetDateTime {
    *time - time::Duration::seconds_f64(record.step as f64 * record.step_ms / 1e3)
}

/// Returns the division of a step's time, which is known only on the CPU.
fn split_of(record: &StepRecord) -> Option<Split> {
    let parts = record.split.as_ref()?;
    let mut split = Split {
        data_ms: record.data_ms?,
        forward_ms: parts.forward_ms,
        backward_ms: parts.backward_ms,
        skew_ms: parts.skew_ms,
        comm_exposed_ms: record.comm_exposed_ms? - parts.skew_ms,
        optimizer_ms: parts.optimizer_ms,
        other_ms: 0.0,
    };
    let parts: f64 = Split::PARTS.iter().map(|(_, part)| part(&split)).sum();
    split.other_ms = record.step_ms - parts;
    Some(split)
}

/// Returns the mean of `splits`, each of which is a mean over equally many steps.
fn mean(splits: &[Split]) -> Option<Split> {
    let mean = |part: fn(&Split) -> f64| splits.iter().map(part).sum::<f64>() / splits.len() as f64;
    (!splits.is_empty()).then(|| Split {
        data_ms: mean(|split| split.data_ms),
        forward_ms: mean(|split| split.forward_ms),
        backward_ms: mean(|split| split.backward_ms),
        skew_ms: mean(|split| split.skew_ms),
        comm_exposed_ms: mean(|split| split.comm_exposed_ms),
        optimizer_ms: mean(|split| split.optimizer_ms),
        other_ms: mean(|split| split.other_ms),
    })
}

pub(super) fn problem(problem: &str) -> BenchError {
    BenchError::Unexpected { what: "metrics.jsonl", problem: problem.to_owned() }
}

/// Reads the end of each epoch that was evaluated.
pub(super) fn epochs_from_metrics(text: &str) -> Result<Vec<EpochEnd>> {
    let (mut begin, mut ends) = (None, Vec::new());
    for line in text.lines() {
        match serde_json::from_str(line).map_err(|error| problem(&error.to_string()))? {
            Timed { record: Record::Step(record), time } => {
                begin.get_or_insert_with(|| first_step_began(&Timed { record, time }));
            }
            Timed { record: Record::Epoch(EpochRecord { epoch, test, .. }), time } => {
                let begin =
                    begin.ok_or_else(|| problem("an epoch record before the first step record"))?;
                let seconds = (time - begin).as_seconds_f64();
                ends.extend(test.map(|test| EpochEnd {
                    epoch,
                    seconds,
                    test_accuracy: test.test_accuracy,
                }));
            }
            Timed { record: Record::Summary(_), .. } => {}
        }
    }
    Ok(ends)
}

/// Returns the number of images in the first `step` steps, counting the smaller last batch of each epoch.
fn images_until(step: u64, global_batch: usize, train_images: usize) -> usize {
    let per_epoch = train_images.div_ceil(global_batch);
    let step = step as usize;
    step / per_epoch * train_images + step % per_epoch * global_batch
}

/// Reads the metrics of a run of `steps` steps over `train_images` that was started at `command_at`.
///
/// Images/s are computed from the times of the records, not from the summary, so that they include all that
/// happens between steps, as the peers' do. Intervals between records that contain the end of an epoch are
/// left out: curves are drawn there, which peers do not do.
pub(super) fn from_metrics(
    text: &str,
    command_at: OffsetDateTime,
    steps: u64,
    train_images: usize,
) -> Result<Measured> {
    let parse = |error: serde_json::Error| problem(&error.to_string());
    let mut raw = Vec::new();
    let (mut lines, mut summary) = (Vec::new(), None);
    for line in text.lines() {
        raw.push(serde_json::from_str::<Value>(line).map_err(parse)?);
        match serde_json::from_str(line).map_err(parse)? {
            Timed { record: Record::Step(record), time } => lines.push(Steps { record, time }),
            Timed { record: Record::Summary(record), .. } => summary = Some(record),
            Timed { record: Record::Epoch(_), .. } => {}
        }
    }
    let Some(SummaryRecord {
        world_size,
        batch_size_per_rank,
        grad_accum_steps,
        steps: taken,
        step_ms_p50: Some(step_ms_p50),
        step_ms_p95: Some(step_ms_p95),
        peak_memory_bytes,
        ..
    }) = summary
    else {
        return Err(problem(
            "no summary with step times; the run needs more steps than the warm-up",
        ));
    };
    if taken != steps {
        return Err(problem(&format!("{taken} steps instead of {steps}; raise train.epochs")));
    }
    let warm = lines.iter().position(|line| line.record.step >= WARMUP_STEPS);
    let (Some(warm), Some(first), Some(last)) = (warm, lines.first(), lines.last()) else {
        return Err(problem("no step record after the warm-up"));
    };
    let (from, timed) = (&lines[warm], &lines[warm + 1..]);
    let global_batch = world_size * batch_size_per_rank * grad_accum_steps;
    let until = |line: &Steps| images_until(line.record.step, global_batch, train_images);
    let images = (until(last) - until(from)) as f64;
    let span = |before: &Steps, after: &Steps| {
        let images = (until(after) - until(before)) as f64;
        (images, (after.time - before.time).as_seconds_f64())
    };
    let pairs = lines[warm..].windows(2).map(|pair| (&pair[0], &pair[1]));
    let within = pairs.filter(|(before, after)| before.record.epoch == after.record.epoch);
    let spans: Vec<_> = within.map(|(before, after)| span(before, after)).collect();
    // Where every interval contains the end of an epoch, take all of them.
    let spans = if spans.is_empty() { vec![span(from, last)] } else { spans };
    let sum = |part: fn(&(f64, f64)) -> f64| spans.iter().map(part).sum::<f64>();
    let splits: Option<Vec<Split>> = timed.iter().map(|line| split_of(&line.record)).collect();
    let each_step =
        timed.iter().flat_map(|line| line.record.split.iter().flat_map(|it| &it.each_step_ms));
    Ok(Measured {
        images_per_s: sum(|span| span.0) / sum(|span| span.1),
        step_ms_p50,
        step_ms_p95,
        seconds_to_training: (first_step_began(first) - command_at).as_seconds_f64(),
        peak_memory_bytes,
        step_ms: each_step.copied().collect(),
        split: mean(&splits.unwrap_or_default()),
        timed: (seconds(from.time), seconds(last.time)),
        images: Some(images),
        energy: None,
        raw: Value::Array(raw),
    })
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    const METRICS: &str = r#"
{"kind":"step","step":10,"epoch":1,"loss":2.0,"lr":0.1,"step_ms":200.0,"grad_norm":1.0,"time":"2026-01-01T00:00:03.500Z"}
{"kind":"step","step":20,"epoch":1,"loss":2.0,"lr":0.1,"step_ms":100.0,"grad_norm":1.0,"time":"2026-01-01T00:00:04.500Z"}
{"kind":"step","step":30,"epoch":1,"loss":2.0,"lr":0.1,"step_ms":100.0,"grad_norm":1.0,"time":"2026-01-01T00:00:05.500Z"}
{"kind":"epoch","epoch":1,"train_loss":2.0,"train_accuracy":0.1,"test_loss":2.0,"test_accuracy":0.1,"seconds":2.0,"time":"2026-01-01T00:00:06Z"}
{"kind":"summary","world_size":2,"batch_size_per_rank":64,"grad_accum_steps":1,"steps":30,"images_per_s":1290.0,"step_ms_p50":99.0,"step_ms_p95":120.0,"seconds_to_first_step":0.9,"peak_memory_bytes":5,"best_test_accuracy":0.1,"time":"2026-01-01T00:00:07Z"}
"#;

    fn read(text: &str, steps: u64) -> Result<Measured> {
        from_metrics(text.trim(), datetime!(2026-01-01 00:00:00 UTC), steps, 50_000)
    }

    #[test]
    fn images_per_s_count_all_between_the_warm_up_and_the_last_step() {
        let measured = read(METRICS, 30).unwrap();
        assert_eq!(measured.images_per_s, 20.0 * 128.0 / 2.0);
        assert_eq!(measured.step_ms_p50, 99.0);
        assert_eq!(measured.raw.as_array().unwrap().len(), 5);
    }

    #[test]
    fn what_happens_between_epochs_is_not_timed() {
        let line = |step: u64, epoch: usize, second: f64| {
            format!(
                r#"{{"kind":"step","step":{step},"epoch":{epoch},"loss":2.0,"lr":0.1,"step_ms":100.0,"grad_norm":1.0,"time":"2026-01-01T00:00:{second:06.3}Z"}}"#
            )
        };
        // Epochs of twenty steps with two records each. Ten steps take a second; five seconds lie between
        // epochs.
        let lines = [line(10, 1, 1.0), line(20, 1, 2.0), line(30, 2, 8.0), line(40, 2, 9.0)];
        let summary =
            METRICS.trim().lines().last().unwrap().replace(r#""steps":30"#, r#""steps":40"#);
        let text = lines.join("\n") + "\n" + &summary;
        let measured = from_metrics(&text, datetime!(2026-01-01 00:00:00 UTC), 40, 2560).unwrap();
        assert_eq!((measured.images_per_s, measured.images), (1280.0, Some(3840.0)));
    }

    #[test]
    fn the_last_batch_of_an_epoch_counts_as_what_it_is() {
        assert_eq!(
            [0, 1, 3, 4, 5, 8].map(|step| images_until(step, 32, 100)),
            [0, 32, 96, 100, 132, 200]
        );
        assert_eq!(images_until(4, 25, 100), 100);
    }

    #[test]
    fn training_begins_before_the_steps_of_the_first_record() {
        assert_eq!(read(METRICS, 30).unwrap().seconds_to_training, 1.5);
    }

    #[test]
    fn an_epoch_ends_with_its_evaluation() {
        let ends = epochs_from_metrics(METRICS.trim()).unwrap();
        assert_eq!(ends, [EpochEnd { epoch: 1, seconds: 4.5, test_accuracy: 0.1 }]);
    }

    #[test]
    fn the_split_is_that_of_timed_steps_and_adds_up() {
        assert_eq!(read(METRICS, 30).unwrap().split, None);
        let split =
            r#""step_ms":100.0,"data_ms":1.0,"comm_exposed_ms":10.0,"skew_ms":4.0,"forward_ms":
            30.0,"backward_ms":50.0,"optimizer_ms":5.0,"each_step_ms":[90.0,110.0]"#
                .replace('\n', "");
        let measured = read(&METRICS.replace(r#""step_ms":100.0"#, &split), 30).unwrap();
        let expected = Split {
            data_ms: 1.0,
            forward_ms: 30.0,
            backward_ms: 50.0,
            skew_ms: 4.0,
            comm_exposed_ms: 6.0,
            optimizer_ms: 5.0,
            other_ms: 4.0,
        };
        assert_eq!(measured.split, Some(expected));
        assert_eq!(measured.step_ms, [90.0, 110.0, 90.0, 110.0]);
    }

    #[test]
    fn a_run_that_ended_early_is_no_measurement() {
        let error = read(METRICS, 70).unwrap_err().to_string();
        assert!(error.contains("30 steps instead of 70"), "{error}");
        assert!(read("", 30).is_err());
    }
}
