//! Reads the results of a run from `metrics.jsonl` and its newest checkpoint; statistics over runs.

use job::metrics::{self, EpochRecord, ReadError, Record};
use job::run_dir::RunDir;
use serde::Deserialize;

use super::file::Metric;

/// Recorded results of a run.
#[derive(Debug, Default)]
pub struct Results {
    /// Records of its epochs, in order.
    pub epochs: Vec<EpochRecord>,
    /// Where the run was when it wrote its last summary; `None` if it never came to its end.
    pub end: Option<Reached>,
}

/// How far a run came, and with how many ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Reached {
    /// Optimizer updates taken.
    pub step: u64,
    /// Number of ranks that trained.
    pub world_size: usize,
}

impl Reached {
    /// Reads it from the newest checkpoint; `None` if there is none that can be read.
    pub fn of_newest_checkpoint(run_dir: &RunDir) -> Option<Self> {
        let state = std::fs::read(run_dir.latest_checkpoint().join("state.json")).ok()?;
        serde_json::from_slice(&state).ok()
    }
}

impl Results {
    /// Reads the metrics of a run; the results are empty if there are none.
    ///
    /// # Errors
    /// When the file cannot be read, or a line is no record.
    pub fn read(run_dir: &RunDir) -> Result<Self, ReadError> {
        let mut results = Self::default();
        for record in metrics::read(&run_dir.metrics_path())? {
            match record {
                Record::Epoch(epoch) => results.epochs.push(epoch),
                Record::Summary(summary) => {
                    let (step, world_size) = (summary.steps, summary.world_size);
                    results.end = Some(Reached { step, world_size });
                }
                Record::Step(_) => {}
            }
        }
        Ok(results)
    }

    /// Returns the value after the last epoch that has the metric.
    pub fn last(&self, metric: Metric) -> Option<f64> {
        self.epochs.iter().rev().find_map(|epoch| metric.of(epoch))
    }

    /// Returns the best test accuracy of all epochs, as a fraction.
    pub fn best_test_accuracy(&self) -> Option<f64> {
        self.epochs.iter().filter_map(|it| Metric::TestAccuracy.of(it)).max_by(f64::total_cmp)
    }

    /// Returns the seconds spent in training, without evaluations.
    pub fn train_seconds(&self) -> f64 {
        self.epochs.iter().map(|epoch| epoch.seconds).sum()
    }
}

impl Metric {
    /// Returns the value in `epoch`: a fraction, or nats. `None` for a metric of the test set if `epoch` was
    /// not evaluated.
    pub fn of(self, epoch: &EpochRecord) -> Option<f64> {
        Some(match self {
            Self::TestError => 1.0 - epoch.test?.test_accuracy,
            Self::TrainError => 1.0 - epoch.train_accuracy,
            Self::TestAccuracy => epoch.test?.test_accuracy,
            Self::TrainAccuracy => epoch.train_accuracy,
            Self::TestLoss => epoch.test?.test_loss,
            Self::TrainLoss => epoch.train_loss,
        })
    }
}

/// Mean and spread of some values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Statistic {
    /// Mean of the values.
    pub mean: f64,
    /// Sample standard deviation of the values; `None` for a single one.
    pub std: Option<f64>,
}

impl Statistic {
    /// Computes the statistic of `values`; `None` if there are none.
    pub fn of(values: &[f64]) -> Option<Self> {
        let count = values.len() as f64;
        let mean = values.iter().sum::<f64>() / count;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        let std = (values.len() > 1).then(|| (squares / (count - 1.0)).sqrt());
        (!values.is_empty()).then_some(Self { mean, std })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_standard_deviation_is_that_of_a_sample() {
        assert_eq!(Statistic::of(&[]), None);
        assert_eq!(Statistic::of(&[3.0]), Some(Statistic { mean: 3.0, std: None }));
        let four = Statistic::of(&[2.0, 4.0, 4.0, 6.0]).unwrap();
        assert_eq!(four.mean, 4.0);
        assert!((four.std.unwrap() - (8.0f64 / 3.0).sqrt()).abs() < 1e-12);
    }
}
