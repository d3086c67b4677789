//! The compute time of one rank's step, by its batch.

use std::str::FromStr;

use crate::cli::Prediction;
use crate::error::{BenchError, Result};
use crate::record::{Measured, Report, Split};
use crate::stats::Spread;

/// Compute time of one rank's step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Compute {
    /// Seconds from the images to the loss.
    pub forward: f64,
    /// Seconds from the loss to the gradients.
    pub backward: f64,
    /// Seconds of everything else: making batches, optimizer, counting.
    pub rest: f64,
}

impl Compute {
    /// Divides the time of a whole step, assuming that backward does twice the work of forward.
    pub const fn from_step(seconds: f64) -> Self {
        Self { forward: seconds / 3.0, backward: seconds * 2.0 / 3.0, rest: 0.0 }
    }

    /// Divides a step of `step` seconds by the median split of `runs`, or as [`Self::from_step`] if they have
    /// none.
    pub fn of_runs(runs: &[&Measured], step: f64) -> Self {
        let median = |part: fn(&Split) -> f64| {
            let parts = runs.iter().filter_map(|run| run.split.as_ref()).map(part);
            Some(Spread::of(parts)?.median / 1e3)
        };
        let split = median(|split| split.forward_ms).zip(median(|split| split.backward_ms));
        split.map_or(Self::from_step(step), |(forward, backward)| Self {
            forward,
            backward,
            rest: (step - forward - backward).max(0.0),
        })
    }

    /// Returns the seconds of a step without communication.
    pub const fn total(&self) -> f64 {
        self.forward + self.backward + self.rest
    }

    /// Returns the time at a batch `factor` times as large: forward and backward scale with the images, the
    /// rest does not.
    const fn scaled(&self, factor: f64) -> Self {
        let Self { forward, backward, rest } = *self;
        Self { forward: forward * factor, backward: backward * factor, rest }
    }

    /// Interpolates linearly between this, at 0, and `other`, at 1.
    fn toward(&self, other: &Self, at: f64) -> Self {
        let between = |a: f64, b: f64| a + (b - a) * at;
        Self {
            forward: between(self.forward, other.forward),
            backward: between(self.backward, other.backward),
            rest: between(self.rest, other.rest),
        }
    }
}

/// Compute time of one rank's step at every batch: interpolated linearly between the known batches, and
/// extrapolated beyond them. A batch below all known ones never has more images/s than the smallest of these.
#[derive(Debug, Clone)]
pub struct ComputeCurve(Vec<(f64, Compute)>);

impl ComputeCurve {
    /// Creates it from the compute times at some batches, at least one.
    pub fn new(mut known: Vec<(usize, Compute)>) -> Self {
        known.sort_by_key(|(batch, _)| *batch);
        known.dedup_by_key(|(batch, _)| *batch);
        Self(known.into_iter().map(|(batch, compute)| (batch as f64, compute)).collect())
    }

    /// Returns the compute time at a batch, which need not be whole.
    pub fn at(&self, batch: f64) -> Compute {
        let known = &self.0;
        let proportional = |(known, compute): &(f64, Compute)| compute.scaled(batch / known);
        let above = known.partition_point(|(known, _)| *known < batch).clamp(1, known.len());
        let Some([low, high]) =
            known.get(above - 1..=above).or_else(|| known.last_chunk::<2>().map(|pair| &pair[..]))
        else {
            return proportional(&known[0]);
        };
        let line = low.1.toward(&high.1, (batch - low.0) / (high.0 - low.0));
        let least = proportional(low);
        if batch < low.0 && line.total() < least.total() { least } else { line }
    }
}

/// Images per second of one GPU, with the batch if the command line gives it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    images_per_s: f64,
    batch: Option<usize>,
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let (rate, batch) = match text.split_once('@') {
            Some((rate, batch)) => (rate, Some(batch)),
            None => (text, None),
        };
        let wrong = || format!("{text}: expected images/s, or RATE@BATCH such as 54000@64");
        let images_per_s = rate.parse().map_err(|_| wrong())?;
        let batch = batch.map(str::parse).transpose().map_err(|_| wrong())?;
        match images_per_s > 0.0 && f64::is_finite(images_per_s) && batch != Some(0) {
            true => Ok(Self { images_per_s, batch }),
            false => Err(wrong()),
        }
    }
}

/// Returns the compute time of one rank and its source in words. `batch`: images per rank.
///
/// # Errors
/// When the command line gives no source, or the measurement lacks this batch.
pub fn compute_curve(
    prediction: &Prediction,
    stem: &str,
    batch: usize,
) -> Result<(ComputeCurve, String)> {
    let unexpected = |what, problem: String| BenchError::Unexpected { what, problem };
    if !prediction.images_per_s.is_empty() {
        let known = prediction.images_per_s.iter().map(|rate| {
            let batch = rate.batch.unwrap_or(batch);
            (batch, Compute::from_step(batch as f64 / rate.images_per_s))
        });
        let says = |rate: &Rate| {
            let at = rate.batch.map_or_else(String::new, |batch| format!(" at batch {batch}"));
            format!("{}{at}", rate.images_per_s)
        };
        let rates: Vec<String> = prediction.images_per_s.iter().map(says).collect();
        let basis = format!("images/s of one GPU from the command line: {}", rates.join(", "));
        return Ok((ComputeCurve::new(known.collect()), basis));
    }
    let Some(path) = &prediction.measured else {
        let problem = "a prediction needs the speed of one GPU; give --measured or --images-per-s";
        return Err(unexpected("the command line", problem.to_owned()));
    };
    let file = |source| BenchError::File { path: path.clone(), source };
    let text = std::fs::read_to_string(path).map_err(file)?;
    let wrong = |problem: String| unexpected("the measurement", problem);
    let report: Report = serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
    let known = measured(&report, stem);
    if !known.iter().any(|(known, _)| *known == batch) {
        let path = path.display();
        return Err(wrong(format!("no run of {stem} on one rank at batch {batch} in {path}")));
    }
    let hardware = report.machine.gpus.first().unwrap_or(&report.machine.cpu);
    let commit = Some(report.versions.lockstep.as_str()).filter(|commit| !commit.is_empty());
    let by = commit.map_or_else(String::new, |commit| format!(", Lockstep {commit}"));
    Ok((ComputeCurve::new(known), format!("one rank measured on {hardware}{by}")))
}

/// Returns the compute time of one rank at each batch at which it was measured.
fn measured(report: &Report, stem: &str) -> Vec<(usize, Compute)> {
    let cases = report.cases().into_iter().filter(|case| case.starts_with(&format!("{stem},")));
    let at_batch = |case: &str, batch: usize| {
        let runs: Vec<_> = report.measured(case, 1, "Lockstep").map(|(_, run)| run).collect();
        let rate = Spread::of(runs.iter().map(|run| run.images_per_s))?.median;
        Some(Compute::of_runs(&runs, batch as f64 / rate))
    };
    let mut known = Vec::new();
    for case in cases {
        let alone = report.sizes(case).into_iter().filter(|(ranks, _)| *ranks == 1);
        known.extend(alone.filter_map(|(_, batch)| Some((batch, at_batch(case, batch)?))));
    }
    known
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(known: &[(usize, f64)], batch: f64) -> f64 {
        let known = known.iter().map(|(batch, seconds)| (*batch, Compute::from_step(*seconds)));
        ComputeCurve::new(known.collect()).at(batch).total()
    }

    fn close(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-9, "{found} is not {expected}");
    }

    #[test]
    fn a_step_follows_the_batch_in_proportion_where_one_is_known() {
        close(seconds(&[(64, 2.0)], 128.0), 4.0);
        close(seconds(&[(64, 2.0)], 8.0), 0.25);
    }

    #[test]
    fn between_known_batches_and_beyond_them_steps_lie_on_lines() {
        let known = [(256, 4.0), (64, 2.5), (1024, 16.0)];
        for (batch, expected) in [(64, 2.5), (160, 3.25), (256, 4.0), (640, 10.0), (1024, 16.0)] {
            close(seconds(&known, f64::from(batch)), expected);
        }
        close(seconds(&known, 1408.0), 22.0);
        // What does not depend on the batch stays.
        close(seconds(&known, 0.0), 2.0);
    }

    #[test]
    fn a_smaller_batch_is_never_faster_an_image() {
        close(seconds(&[(64, 1.0), (128, 3.0)], 32.0), 0.5);
    }

    #[test]
    fn rates_are_of_a_batch_or_of_the_one_asked_for() {
        assert_eq!("54000@64".parse(), Ok(Rate { images_per_s: 54000.0, batch: Some(64) }));
        assert_eq!("4.7e3".parse(), Ok(Rate { images_per_s: 4700.0, batch: None }));
        for wrong in ["", "0", "-1@64", "5@", "5@0", "fast", "inf"] {
            assert!(wrong.parse::<Rate>().unwrap_err().contains("RATE@BATCH"), "{wrong}");
        }
    }
}
