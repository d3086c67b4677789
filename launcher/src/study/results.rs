//! What a run has left in `metrics.jsonl`, and statistics over runs.

use std::path::Path;

use job::metrics::{self, EpochRecord, ReadError, Record};

use super::file::Metric;

/// What there is of a run.
#[derive(Debug, Default)]
pub struct Results {
    /// Its epochs, in order.
    pub epochs: Vec<EpochRecord>,
    /// Steps of the last summary, if it came to its end.
    pub summary_steps: Option<u64>,
}

impl Results {
    /// Reads the metrics at `path`; nothing where there is no file.
    ///
    /// # Errors
    /// When the file cannot be read, or a line is no record.
    pub fn read(path: &Path) -> Result<Self, ReadError> {
        let mut results = Self::default();
        for record in metrics::read(path)? {
            match record {
                Record::Epoch(epoch) => results.epochs.push(epoch),
                Record::Summary(summary) => results.summary_steps = Some(summary.steps),
                Record::Step(_) => {}
            }
        }
        Ok(results)
    }

    /// After the last epoch that has it.
    pub fn last(&self, metric: Metric) -> Option<f64> {
        self.epochs.iter().rev().find_map(|epoch| metric.of(epoch))
    }

    /// The best test accuracy of all epochs, a fraction.
    pub fn best_test_accuracy(&self) -> Option<f64> {
        self.epochs.iter().filter_map(|it| Metric::TestAccuracy.of(it)).max_by(f64::total_cmp)
    }

    /// Of training, without evaluations.
    pub fn train_seconds(&self) -> f64 {
        self.epochs.iter().map(|epoch| epoch.seconds).sum()
    }
}

impl Metric {
    /// Its value in `epoch`: a fraction, or nats. `None` where it is of an evaluation, and there was none.
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

/// Of some values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Statistic {
    /// Their mean.
    pub mean: f64,
    /// Their sample standard deviation; `None` for a single one.
    pub std: Option<f64>,
}

impl Statistic {
    /// `None` when there is no value.
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
