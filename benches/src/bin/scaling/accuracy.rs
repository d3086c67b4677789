//! The time to reach an accuracy on the test images, which is what throughput is for.

use std::fs;
use std::path::Path;

use job::run_dir::RunDir;
use serde::{Deserialize, Serialize};

use crate::load::Load;
use crate::stats::Spread;

/// One run that trained until it reached the accuracy, or to the end of its epochs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AccuracyRun {
    /// The case's name.
    pub case: String,
    /// Number of ranks.
    pub ranks: usize,
    /// Name of the contestant that trained.
    pub contestant: String,
    /// Seed of the initial weights and of the order of samples.
    pub seed: u64,
    /// The test accuracy to reach, a fraction.
    pub target: f64,
    /// When the run began, in UTC.
    pub started: String,
    /// Use of the processors by other processes during the run.
    pub load: Option<Load>,
    /// End of each epoch; empty if the run failed.
    pub epochs: Vec<EpochEnd>,
    /// Why the run failed, if it did.
    pub failure: Option<String>,
}

/// The end of the evaluation after an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct EpochEnd {
    /// Number of the epoch, from 1.
    pub epoch: usize,
    /// Seconds since the beginning of the first step, evaluations included.
    pub seconds: f64,
    /// Accuracy on all test images, a fraction.
    pub test_accuracy: f64,
}

impl AccuracyRun {
    /// Returns the end of the first epoch that reached the target.
    pub fn reached(&self) -> Option<EpochEnd> {
        self.epochs.iter().copied().find(|end| end.test_accuracy >= self.target)
    }
}

/// Runs that differ only in their seed.
pub struct Seeds<'a>(pub Vec<&'a AccuracyRun>);

impl Seeds<'_> {
    /// Groups runs by contestant and size, in the order in which they began.
    pub fn group(runs: &[AccuracyRun]) -> Vec<Seeds<'_>> {
        let mut groups: Vec<Seeds<'_>> = Vec::new();
        for run in runs {
            let is_same = |group: &&mut Seeds<'_>| {
                let first = group.0[0];
                (&first.case, first.ranks, &first.contestant)
                    == (&run.case, run.ranks, &run.contestant)
            };
            match groups.iter_mut().find(is_same) {
                Some(group) => group.0.push(run),
                None => groups.push(Seeds(vec![run])),
            }
        }
        groups
    }

    /// Returns the spread of the seconds to the accuracy, over the seeds that reached it.
    pub fn seconds(&self) -> Option<Spread> {
        Spread::of(self.reached().map(|end| end.seconds))
    }

    /// Returns the spread of the epochs to the accuracy, over the seeds that reached it.
    pub fn epochs(&self) -> Option<Spread> {
        Spread::of(self.reached().map(|end| end.epoch as f64))
    }

    /// Returns the epochs' ends at which seeds reached the accuracy.
    pub fn reached(&self) -> impl Iterator<Item = EpochEnd> {
        self.0.iter().filter_map(|run| run.reached())
    }
}

/// Returns whether the metrics in `run_dir` show an epoch that has reached `target`.
pub fn is_reached(run_dir: &Path, target: f64) -> bool {
    let text = fs::read_to_string(RunDir::at(run_dir).metrics_path()).unwrap_or_default();
    text.lines().any(|line| {
        // The last line may be incomplete.
        let record: serde_json::Value = serde_json::from_str(line).unwrap_or_default();
        record["kind"] == "epoch" && record["test_accuracy"].as_f64() >= Some(target)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(contestant: &str, seed: u64, accuracies: &[f64]) -> AccuracyRun {
        let epochs = accuracies.iter().enumerate().map(|(index, &test_accuracy)| EpochEnd {
            epoch: index + 1,
            seconds: 10.0 * (index + 1) as f64,
            test_accuracy,
        });
        AccuracyRun {
            case: "case".to_owned(),
            ranks: 2,
            contestant: contestant.to_owned(),
            seed,
            target: 0.7,
            started: String::new(),
            load: Some(Load { others: 0.0, steal: 0.0 }),
            epochs: epochs.collect(),
            failure: None,
        }
    }

    #[test]
    fn the_first_epoch_with_the_accuracy_counts() {
        assert_eq!(run("a", 0, &[0.5, 0.72, 0.6, 0.8]).reached().unwrap().epoch, 2);
        assert_eq!(run("a", 0, &[0.5, 0.69]).reached(), None);
    }

    #[test]
    fn seeds_of_one_contestant_are_together() {
        let runs = [run("a", 0, &[0.7]), run("b", 0, &[0.1]), run("a", 1, &[0.1, 0.1, 0.9])];
        let groups = Seeds::group(&runs);
        assert_eq!(groups.len(), 2);
        assert_eq!(groups[0].seconds().unwrap().median, 20.0);
        assert_eq!(groups[1].seconds(), None);
    }

    #[test]
    fn an_epoch_counts_once_it_is_written() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!is_reached(folder.path(), 0.7));
        let text = "{\"kind\":\"epoch\",\"test_accuracy\":0.71}\n{\"kind\":\"epo";
        fs::write(folder.path().join("metrics.jsonl"), text).unwrap();
        assert!(is_reached(folder.path(), 0.7) && !is_reached(folder.path(), 0.72));
    }
}
