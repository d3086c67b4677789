//! Running our launcher, and reading what it leaves.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;
use serde_json::Value;
use time::OffsetDateTime;

use crate::accuracy::{self, EpochEnd};
use crate::cli::Args;
use crate::energy::seconds;
use crate::error::{BenchError, Result};
use crate::plan::{Case, Cell, Device, Goal};
use crate::process;
use crate::record::{Measured, Split};
use crate::srun;

/// As many made-up images as CIFAR-10 has, and as peers make.
const MADE_UP: [&str; 2] = ["data.dataset=synthetic", "data.train_images=50000"];

/// Steps that neither we nor the peers count: caches and clocks are still cold.
pub const WARMUP_STEPS: u64 = 10;

/// Our programs and what is the same in all runs.
pub struct Ours {
    launcher: PathBuf,
    device: Device,
    steps: u64,
    data: Option<PathBuf>,
    train_images: Option<usize>,
    overrides: Vec<String>,
    timeout_seconds: u64,
}

impl Ours {
    /// Takes the launcher beside this program.
    ///
    /// # Errors
    /// [`BenchError::NotBuilt`], where it or the trainer is not there; [`BenchError::Nodes`].
    pub fn new(args: &Args) -> Result<Self> {
        let file = |source| BenchError::File { path: "/proc/self/exe".into(), source };
        let launcher = std::env::current_exe().map_err(file)?.with_file_name("launcher");
        for program in [launcher.clone(), launcher.with_file_name("trainer")] {
            if !program.is_file() {
                return Err(BenchError::NotBuilt(program));
            }
        }
        let most = args.nodes.iter().copied().max().unwrap_or(1);
        srun::check(most, |name| std::env::var(name).ok())?;
        Ok(Self {
            launcher,
            device: args.device(),
            steps: args.steps,
            data: args.data.clone(),
            train_images: args.train_images,
            overrides: args.overrides.clone(),
            timeout_seconds: args.timeout_seconds,
        })
    }

    /// Trains once, with everything in `folder`.
    ///
    /// # Errors
    /// When the run fails, or does not say what was expected.
    pub fn measure(
        &self,
        case: &Case,
        cell: Cell,
        overrides: &[String],
        folder: &Path,
    ) -> Result<Measured> {
        let steps = WARMUP_STEPS + self.steps;
        let own = [
            format!("train.max_steps={steps}"),
            // Peers only train. What is left, at the end, is not timed, but waited for.
            "eval.every_epochs=1000000".to_owned(),
            "checkpoint.every_epochs=1000000".to_owned(),
            "data.test_images=100".to_owned(),
        ];
        let run_dir = folder.join("run");
        let mut command = self.command(case, cell, &run_dir, &[&own, overrides].concat());
        let started = process::run(&mut command, folder, self.timeout_seconds)?;
        let config = job::config::load(&run_dir.join("config.yaml"), &[])?;
        let outline =
            job::dataset::outline(&config.data).map_err(|error| problem(&error.to_string()))?;
        from_metrics(&metrics(&run_dir)?, started, steps, outline.images[0])
    }

    /// Trains until an evaluation shows `target`, or to the end, with everything in `folder`.
    ///
    /// # Errors
    /// As [`Self::measure`].
    pub fn train_to(
        &self,
        case: &Case,
        cell: Cell,
        overrides: &[String],
        folder: &Path,
        goal: Goal,
    ) -> Result<Vec<EpochEnd>> {
        let own = [format!("train.seed={}", goal.seed)];
        let run_dir = folder.join("run");
        let mut command = self.command(case, cell, &run_dir, &[&own, overrides].concat());
        let is_enough = || accuracy::is_reached(&run_dir, goal.target);
        process::run_until(&mut command, folder, goal.timeout_seconds, is_enough)?;
        epochs_from_metrics(&metrics(&run_dir)?)
    }

    fn command(&self, case: &Case, cell: Cell, run_dir: &Path, overrides: &[String]) -> Command {
        let device = if self.device == Device::Gpu { "--gpus" } else { "--cpu" };
        let mut command = srun::command(cell.nodes, &self.launcher);
        command.args([device, &(cell.ranks / cell.nodes).to_string(), "--quiet"]);
        command.arg(&case.config).args(["--resume", "never", "--run-dir"]).arg(run_dir);
        let batch = format!("train.batch_size_per_rank={}", cell.batch_per_rank);
        let made_up = self.data.is_none().then_some(MADE_UP).into_iter().flatten();
        let own = ["train.global_batch_size=null".to_owned(), batch].into_iter();
        let own = own.chain(made_up.map(str::to_owned));
        let own = own.chain(self.train_images.map(|images| format!("data.train_images={images}")));
        for set in own.chain(self.overrides.iter().chain(overrides).cloned()) {
            command.arg("--set").arg(set);
        }
        if let Some(data) = &self.data {
            command.env("CIFAR10_DIR", data);
        }
        command
    }
}

/// A line of `metrics.jsonl`, as far as it matters here.
#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Line {
    Step(StepLine),
    Epoch {
        epoch: usize,
        /// `None` where the epoch was not evaluated.
        test_accuracy: Option<f64>,
        #[serde(with = "time::serde::rfc3339")]
        time: OffsetDateTime,
    },
    Summary {
        world_size: usize,
        batch_size_per_rank: usize,
        grad_accum_steps: usize,
        steps: u64,
        step_ms_p50: Option<f64>,
        step_ms_p95: Option<f64>,
        peak_memory_bytes: u64,
    },
    #[serde(other)]
    Other,
}

/// Means over the steps since the last such line.
#[derive(Deserialize)]
struct StepLine {
    step: u64,
    epoch: usize,
    step_ms: f64,
    /// This and what follows is only known on the CPU.
    data_ms: Option<f64>,
    comm_exposed_ms: Option<f64>,
    skew_ms: Option<f64>,
    forward_ms: Option<f64>,
    backward_ms: Option<f64>,
    optimizer_ms: Option<f64>,
    #[serde(default)]
    each_step_ms: Vec<f64>,
    #[serde(with = "time::serde::rfc3339")]
    time: OffsetDateTime,
}

impl StepLine {
    /// When the first step began, by the first line.
    fn first_step_began(&self) -> OffsetDateTime {
        self.time - time::Duration::seconds_f64(self.step as f64 * self.step_ms / 1e3)
    }

    fn split(&self) -> Option<Split> {
        let mut split = Split {
            data_ms: self.data_ms?,
            forward_ms: self.forward_ms?,
            backward_ms: self.backward_ms?,
            skew_ms: self.skew_ms?,
            comm_exposed_ms: self.comm_exposed_ms? - self.skew_ms?,
            optimizer_ms: self.optimizer_ms?,
            other_ms: 0.0,
        };
        let parts: f64 = Split::PARTS.iter().map(|(_, part)| part(&split)).sum();
        split.other_ms = self.step_ms - parts;
        Some(split)
    }
}

/// The mean of means over equally many steps.
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

fn metrics(run_dir: &Path) -> Result<String> {
    let path = run_dir.join("metrics.jsonl");
    fs::read_to_string(&path).map_err(|source| BenchError::File { path, source })
}

fn problem(problem: &str) -> BenchError {
    BenchError::Unexpected { what: "metrics.jsonl", problem: problem.to_owned() }
}

/// Reads the epochs' ends.
fn epochs_from_metrics(text: &str) -> Result<Vec<EpochEnd>> {
    let (mut begin, mut ends) = (None, Vec::new());
    for line in text.lines() {
        match serde_json::from_str(line).map_err(|error| problem(&error.to_string()))? {
            Line::Step(line) => {
                begin.get_or_insert_with(|| line.first_step_began());
            }
            Line::Epoch { epoch, test_accuracy, time } => {
                let begin = begin.ok_or_else(|| problem("no step before an epoch's end"))?;
                let seconds = (time - begin).as_seconds_f64();
                ends.extend(test_accuracy.map(|test_accuracy| EpochEnd {
                    epoch,
                    seconds,
                    test_accuracy,
                }));
            }
            Line::Summary { .. } | Line::Other => {}
        }
    }
    Ok(ends)
}

/// Images of which the first `step` steps were, with the last batch of each epoch as small as it is.
fn images_until(step: u64, global_batch: usize, train_images: usize) -> usize {
    let per_epoch = train_images.div_ceil(global_batch);
    let step = step as usize;
    step / per_epoch * train_images + step % per_epoch * global_batch
}

/// Reads the metrics of a run of `steps` steps over `train_images` that was started at `command_at`.
///
/// Images/s come from the times of records, not from the summary: so they count all that happens
/// between steps too, as the peers' do. Records that an epoch's end lies between are left out: curves are
/// drawn there, and peers draw none.
fn from_metrics(
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
            Line::Step(line) => lines.push(line),
            line @ Line::Summary { .. } => summary = Some(line),
            Line::Epoch { .. } | Line::Other => {}
        }
    }
    let Some(Line::Summary {
        world_size,
        batch_size_per_rank,
        grad_accum_steps,
        steps: taken,
        step_ms_p50: Some(step_ms_p50),
        step_ms_p95: Some(step_ms_p95),
        peak_memory_bytes,
    }) = summary
    else {
        return Err(problem("no summary of a run with more steps than the warm-up"));
    };
    if taken != steps {
        return Err(problem(&format!("{taken} steps instead of {steps}; more epochs are needed")));
    }
    let warm = lines.iter().position(|line| line.step >= WARMUP_STEPS);
    let (Some(warm), Some(first), Some(last)) = (warm, lines.first(), lines.last()) else {
        return Err(problem("no record of a step"));
    };
    let (from, timed) = (&lines[warm], &lines[warm + 1..]);
    let global_batch = world_size * batch_size_per_rank * grad_accum_steps;
    let until = |line: &StepLine| images_until(line.step, global_batch, train_images);
    let images = (until(last) - until(from)) as f64;
    let span = |before: &StepLine, after: &StepLine| {
        let images = (until(after) - until(before)) as f64;
        (images, (after.time - before.time).as_seconds_f64())
    };
    let pairs = lines[warm..].windows(2).map(|pair| (&pair[0], &pair[1]));
    let within = pairs.filter(|(before, after)| before.epoch == after.epoch);
    let spans: Vec<_> = within.map(|(before, after)| span(before, after)).collect();
    // Where epochs are that short there is nothing else.
    let spans = if spans.is_empty() { vec![span(from, last)] } else { spans };
    let sum = |part: fn(&(f64, f64)) -> f64| spans.iter().map(part).sum::<f64>();
    let splits: Option<Vec<Split>> = timed.iter().map(StepLine::split).collect();
    Ok(Measured {
        images_per_s: sum(|span| span.0) / sum(|span| span.1),
        step_ms_p50,
        step_ms_p95,
        seconds_to_training: (first.first_step_began() - command_at).as_seconds_f64(),
        peak_memory_bytes,
        step_ms: timed.iter().flat_map(|line| line.each_step_ms.iter().copied()).collect(),
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
{"kind":"step","step":10,"epoch":1,"step_ms":200.0,"time":"2026-01-01T00:00:03.500Z"}
{"kind":"step","step":20,"epoch":1,"step_ms":100.0,"time":"2026-01-01T00:00:04.500Z"}
{"kind":"step","step":30,"epoch":1,"step_ms":100.0,"time":"2026-01-01T00:00:05.500Z"}
{"kind":"epoch","epoch":1,"test_accuracy":0.1,"time":"2026-01-01T00:00:06Z"}
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
                r#"{{"kind":"step","step":{step},"epoch":{epoch},"step_ms":100.0,"time":"2026-01-01T00:00:{second:06.3}Z"}}"#
            )
        };
        // Two records of each epoch of twenty steps, a second each, and five seconds between epochs.
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
