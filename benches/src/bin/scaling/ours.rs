//! Running our launcher, and reading what it leaves.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;
use serde_json::Value;
use time::OffsetDateTime;

use crate::cli::{Args, Variant};
use crate::error::{BenchError, Result};
use crate::plan::{Case, Cell, Device};
use crate::process;
use crate::record::Measured;

/// Steps that neither we nor the peers count: caches and clocks are still cold.
pub const WARMUP_STEPS: u64 = 10;

/// Our programs and what is the same in all runs.
pub struct Ours {
    launcher: PathBuf,
    device: Device,
    steps: u64,
    data: Option<PathBuf>,
    overrides: Vec<String>,
    timeout_seconds: u64,
}

impl Ours {
    /// Takes the launcher beside this program.
    ///
    /// # Errors
    /// [`BenchError::NotBuilt`], where it or the trainer is not there.
    pub fn new(args: &Args) -> Result<Self> {
        let file = |source| BenchError::File { path: "/proc/self/exe".into(), source };
        let launcher = std::env::current_exe().map_err(file)?.with_file_name("launcher");
        for program in [launcher.clone(), launcher.with_file_name("trainer")] {
            if !program.is_file() {
                return Err(BenchError::NotBuilt(program));
            }
        }
        Ok(Self {
            launcher,
            device: args.device(),
            steps: args.steps,
            data: args.data.clone(),
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
        variant: &Variant,
        folder: &Path,
    ) -> Result<Measured> {
        let run_dir = folder.join("run");
        let mut command = Command::new(&self.launcher);
        command
            .arg(&case.config)
            .arg(if self.device == Device::Gpu { "--gpus" } else { "--cpu" })
            .arg(cell.ranks.to_string())
            .args(["--quiet", "--resume", "never", "--run-dir"])
            .arg(&run_dir);
        let sets = self.own_overrides(cell);
        for set in sets.iter().chain(&self.overrides).chain(&variant.overrides) {
            command.args(["--set", set]);
        }
        if let Some(data) = &self.data {
            command.env("CIFAR10_DIR", data);
        }
        let started = process::run(&mut command, folder, self.timeout_seconds)?;
        let path = run_dir.join("metrics.jsonl");
        let text = fs::read_to_string(&path).map_err(|source| BenchError::File { path, source })?;
        from_metrics(&text, started, WARMUP_STEPS + self.steps)
    }

    /// What makes a run of the configuration a measurement.
    fn own_overrides(&self, cell: Cell) -> Vec<String> {
        let mut sets = vec![
            format!("train.max_steps={}", WARMUP_STEPS + self.steps),
            format!("train.batch_size_per_rank={}", cell.batch_per_rank),
            // The evaluation at the end is not timed, but waited for.
            "data.test_images=100".to_owned(),
        ];
        sets.extend(self.data.is_none().then(|| "data.dataset=synthetic".to_owned()));
        sets
    }
}

/// A line of `metrics.jsonl`, as far as it matters here.
#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Line {
    Step {
        step: u64,
        step_ms: f64,
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

/// Reads the metrics of a run of `steps` steps that was started at `command_at`.
///
/// Images/s come from the times of records, not from the summary: so they count all that happens
/// between steps too, as the peers' do.
fn from_metrics(text: &str, command_at: OffsetDateTime, steps: u64) -> Result<Measured> {
    let problem = |problem: &str| BenchError::Unexpected {
        what: "metrics.jsonl",
        problem: problem.to_owned(),
    };
    let parse = |error: serde_json::Error| problem(&error.to_string());
    let mut raw = Vec::new();
    let (mut marks, mut first, mut summary) = (Vec::new(), None, None);
    for line in text.lines() {
        raw.push(serde_json::from_str::<Value>(line).map_err(parse)?);
        match serde_json::from_str(line).map_err(parse)? {
            Line::Step { step, step_ms, time } => {
                first.get_or_insert((step, step_ms, time));
                marks.push((step, time));
            }
            line @ Line::Summary { .. } => summary = Some(line),
            Line::Other => {}
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
    let warm = marks.iter().find(|(step, _)| *step >= WARMUP_STEPS);
    let (Some((from, from_time)), Some((to, to_time)), Some((step, step_ms, time))) =
        (warm, marks.last(), first)
    else {
        return Err(problem("no record of a step"));
    };
    let images = (to - from) as f64 * (world_size * batch_size_per_rank * grad_accum_steps) as f64;
    let before_first = time - time::Duration::seconds_f64(step as f64 * step_ms / 1e3);
    Ok(Measured {
        images_per_s: images / (*to_time - *from_time).as_seconds_f64(),
        step_ms_p50,
        step_ms_p95,
        seconds_to_training: (before_first - command_at).as_seconds_f64(),
        peak_memory_bytes,
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
        from_metrics(text.trim(), datetime!(2026-01-01 00:00:00 UTC), steps)
    }

    #[test]
    fn images_per_s_count_all_between_the_warm_up_and_the_last_step() {
        let measured = read(METRICS, 30).unwrap();
        assert_eq!(measured.images_per_s, 20.0 * 128.0 / 2.0);
        assert_eq!(measured.step_ms_p50, 99.0);
        assert_eq!(measured.raw.as_array().unwrap().len(), 5);
    }

    #[test]
    fn training_begins_before_the_steps_of_the_first_record() {
        assert_eq!(read(METRICS, 30).unwrap().seconds_to_training, 1.5);
    }

    #[test]
    fn a_run_that_ended_early_is_no_measurement() {
        let error = read(METRICS, 70).unwrap_err().to_string();
        assert!(error.contains("30 steps instead of 70"), "{error}");
        assert!(read("", 30).is_err());
    }
}
