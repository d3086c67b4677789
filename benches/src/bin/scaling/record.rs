//! The records of all runs, as kept in `results.json`.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::accuracy::AccuracyRun;
use crate::cli::Args;
use crate::energy::Energy;
use crate::load::Load;
use crate::machine::{Machine, Versions, now};
use crate::plan::Run;
use crate::stats::Series;

/// All runs, with what is needed to repeat them.
#[derive(Serialize, Deserialize)]
pub struct Report {
    /// When the measurement began, in UTC.
    pub date: String,
    /// The command line.
    pub command: Vec<String>,
    /// The machine on which everything ran.
    pub machine: Machine,
    /// Versions of the software that ran.
    pub versions: Versions,
    /// Timed steps of each run.
    pub steps: u64,
    /// Seconds after which peers of one rank timed no further steps.
    #[serde(default)]
    pub most_seconds: Option<f64>,
    /// Runs, in the order in which they ran.
    pub records: Vec<Record>,
    /// Runs that trained to an accuracy.
    #[serde(default)]
    pub to_accuracy: Vec<AccuracyRun>,
}

/// One run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    /// Number of the round, from 1.
    pub round: usize,
    /// The case's name.
    pub case: String,
    /// Number of nodes.
    #[serde(default = "one")]
    pub nodes: usize,
    /// Number of ranks.
    pub ranks: usize,
    /// Images per rank and step.
    pub batch_per_rank: usize,
    /// Name of the contestant that trained.
    pub contestant: String,
    /// When the run began, in UTC.
    pub started: String,
    /// Use of the processors by other processes during the run; known only for runs on one node.
    pub load: Option<Load>,
    /// Whether the run was repeated because other processes disturbed it. Tables leave such runs out.
    pub disturbed: bool,
    /// Result of the run.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// How a run ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The run succeeded.
    Measured(Measured),
    /// The run failed, for this reason.
    Failed(String),
}

/// The measurements of a successful run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Images per second over all ranks, in wall time from the end of the 10th step to the end of the last.
    /// For Lockstep, without what happens between epochs.
    pub images_per_s: f64,
    /// Median time of a step, in milliseconds.
    pub step_ms_p50: f64,
    /// 95th percentile of the time of a step, in milliseconds.
    pub step_ms_p95: f64,
    /// Seconds from the start of the command to the beginning of the first step.
    pub seconds_to_training: f64,
    /// Largest peak memory of a rank in bytes: of its process, or of its GPU.
    pub peak_memory_bytes: u64,
    /// Time of each timed step in milliseconds, if the run reports it.
    #[serde(default)]
    pub step_ms: Vec<f64>,
    /// Mean division of the time of the timed steps, if the run reports it.
    #[serde(default)]
    pub split: Option<Split>,
    /// Beginning and end of the timed steps, in seconds since 1970.
    #[serde(default)]
    pub timed: (f64, f64),
    /// Images between these times, if that is not `images_per_s` times their difference.
    #[serde(default)]
    pub images: Option<f64>,
    /// Energy used between these times, if it is measured.
    #[serde(default)]
    pub energy: Option<Energy>,
    /// Everything that the run reported.
    pub raw: Value,
}

impl Measured {
    /// Returns the energy per image, if it is measured.
    pub fn joules_per_image(&self) -> Option<f64> {
        let (from, to) = self.timed;
        let images = self.images.unwrap_or(self.images_per_s * (to - from));
        Some(self.energy.as_ref()?.joules / images)
    }
}

/// Milliseconds of each part of a mean step, over all ranks. Time that no part accounts for is in `other_ms`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Split {
    /// Making the batch.
    pub data_ms: f64,
    /// Forward pass, from the images to the loss.
    pub forward_ms: f64,
    /// Backward pass, from the loss to the rank's own gradients.
    pub backward_ms: f64,
    /// Waiting for the slowest rank's gradients.
    pub skew_ms: f64,
    /// Waiting for the sum of all gradients once every rank has its own.
    pub comm_exposed_ms: f64,
    /// Updating the weights.
    pub optimizer_ms: f64,
    /// Anything else: counting, recording, and waiting for other ranks to have done so.
    pub other_ms: f64,
}

/// The name of a part, and a function that returns its milliseconds.
pub type Part = (&'static str, fn(&Split) -> f64);

impl Split {
    /// The parts and their names, in the order in which a step does them.
    pub const PARTS: [Part; 7] = [
        ("data", |split| split.data_ms),
        ("forward", |split| split.forward_ms),
        ("backward", |split| split.backward_ms),
        ("skew", |split| split.skew_ms),
        ("exposed communication", |split| split.comm_exposed_ms),
        ("optimizer", |split| split.optimizer_ms),
        ("other", |split| split.other_ms),
    ];
}

impl Report {
    /// Creates a report without runs.
    pub fn new(args: &Args, peer: Option<&Value>) -> Self {
        Self {
            date: now(),
            command: std::env::args().collect(),
            machine: Machine::look(args.device()),
            versions: Versions::look(peer.cloned()),
            steps: args.steps,
            most_seconds: args.peer_seconds,
            records: Vec::new(),
            to_accuracy: Vec::new(),
        }
    }

    /// Returns whether this contestant has failed in this case at this rank count.
    pub fn has_failed(&self, run: Run<'_>) -> bool {
        let name = run.contestant.name();
        self.records.iter().any(|record| {
            let is_it = record.case == run.case.name && record.ranks == run.size.ranks;
            is_it && record.contestant == name && record.measured().is_none()
        })
    }

    /// Returns whether any run has succeeded, or any run to an accuracy was made.
    pub fn has_results(&self) -> bool {
        self.records.iter().any(|record| record.measured().is_some())
            || !self.to_accuracy.is_empty()
    }

    /// Returns the names of the cases, in the order in which they ran.
    pub fn cases(&self) -> Vec<&str> {
        in_order(self.records.iter().map(|record| record.case.as_str()))
    }

    /// Returns the rank counts of a case, each with its batch per rank.
    pub fn sizes(&self, case: &str) -> Vec<(usize, usize)> {
        in_order(self.of(case).map(|record| (record.ranks, record.batch_per_rank)))
    }

    /// Returns the names of the contestants that have succeeded at least once in a case.
    pub fn contestants(&self, case: &str) -> Vec<&str> {
        let good = self.of(case).filter(|record| record.measured().is_some());
        in_order(good.map(|record| record.contestant.as_str()))
    }

    /// Returns the number of nodes on which `ranks` ranks of a case ran.
    pub fn nodes(&self, case: &str, ranks: usize) -> usize {
        self.of(case).find(|record| record.ranks == ranks).map_or(1, |record| record.nodes)
    }

    fn of(&self, case: &str) -> impl Iterator<Item = &Record> {
        self.records.iter().filter(move |record| record.case == case)
    }

    /// Returns the rounds and measurements of a contestant's successful, undisturbed runs.
    pub fn measured<'a>(
        &'a self,
        case: &'a str,
        ranks: usize,
        contestant: &'a str,
    ) -> impl Iterator<Item = (usize, &'a Measured)> {
        self.records
            .iter()
            .filter(move |record| {
                let is_its = record.case == case && record.ranks == ranks;
                is_its && record.contestant == contestant && !record.disturbed
            })
            .filter_map(|record| Some((record.round, record.measured()?)))
    }

    /// Returns the images/s of these runs by round.
    pub fn rates(&self, case: &str, ranks: usize, contestant: &str) -> Series {
        let runs = self.measured(case, ranks, contestant);
        runs.map(|(round, measured)| (round, measured.images_per_s)).collect()
    }
}

/// Default of `nodes`, for records of versions that knew only one node.
const fn one() -> usize {
    1
}

/// Returns each value once, at its first position.
fn in_order<T: PartialEq>(values: impl Iterator<Item = T>) -> Vec<T> {
    let mut found = Vec::new();
    for value in values {
        if !found.contains(&value) {
            found.push(value);
        }
    }
    found
}

impl Record {
    /// Returns the measurements, if the run succeeded.
    pub const fn measured(&self) -> Option<&Measured> {
        match &self.outcome {
            Outcome::Measured(measured) => Some(measured),
            Outcome::Failed(_) => None,
        }
    }
}

#[cfg(test)]
pub mod tests {
    use clap::Parser;
    use serde_json::json;

    use super::*;
    use crate::cli::Cli;
    use crate::plan::Plan;

    /// Returns the plan of a command line, and a report without runs.
    pub fn report(extra: &[&str]) -> (Plan, Report) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("job.yaml");
        std::fs::write(&path, "").unwrap();
        let required =
            ["scaling", "--cpu", "1,2", "--out", "o", "--configs", path.to_str().unwrap()];
        let args = Cli::parse_from([&required, extra].concat()).run;
        let versions = json!({"torch": "2.0", "python": "3.0"});
        (Plan::new(&args).unwrap(), Report::new(&args, Some(&versions)))
    }

    /// Returns a successful run of the case of [`report`].
    pub fn run(round: usize, ranks: usize, contestant: &str, images_per_s: f64) -> Record {
        let measured = Measured {
            images_per_s,
            step_ms_p50: 100.0,
            step_ms_p95: 110.0,
            seconds_to_training: 1.25,
            peak_memory_bytes: 512 << 20,
            step_ms: Vec::new(),
            split: None,
            timed: (0.0, 1.0),
            images: None,
            energy: None,
            raw: Value::Null,
        };
        Record {
            round,
            case: "job, weak scaling, batch 64 per rank".to_owned(),
            nodes: 1,
            ranks,
            batch_per_rank: 64,
            contestant: contestant.to_owned(),
            started: String::new(),
            load: Some(Load { others: 0.0, steal: 0.0 }),
            disturbed: false,
            outcome: Outcome::Measured(measured),
        }
    }

    #[test]
    fn a_report_is_read_back_as_it_was_written() {
        let (_, mut report) = report(&[]);
        report.records.push(run(1, 2, "Lockstep", 100.0));
        let text = serde_json::to_string(&report).unwrap();
        let read: Report = serde_json::from_str(&text).unwrap();
        assert_eq!(serde_json::to_string(&read).unwrap(), text);
        assert_eq!(read.sizes("job, weak scaling, batch 64 per rank"), [(2, 64)]);
    }
}
