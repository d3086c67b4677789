//! What is kept of every run.

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
    /// When it began, in UTC.
    pub date: String,
    /// The command line.
    pub command: Vec<String>,
    /// Where all this ran.
    pub machine: Machine,
    /// Of what ran.
    pub versions: Versions,
    /// Steps that were timed, of each run.
    pub steps: u64,
    /// After which peers of one rank timed no more, if they were still at it.
    #[serde(default)]
    pub most_seconds: Option<f64>,
    /// In the order in which they ran.
    pub records: Vec<Record>,
    /// Runs to an accuracy.
    #[serde(default)]
    pub to_accuracy: Vec<AccuracyRun>,
}

/// One run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    /// From 1.
    pub round: usize,
    /// The case's name.
    pub case: String,
    /// On how many nodes.
    #[serde(default = "one")]
    pub nodes: usize,
    /// How many ranks.
    pub ranks: usize,
    /// Images that each takes a step.
    pub batch_per_rank: usize,
    /// Who trained.
    pub contestant: String,
    /// When it began, in UTC.
    pub started: String,
    /// Who else used the processors meanwhile; only known of one node.
    pub load: Option<Load>,
    /// Whether it ran again because others disturbed it: tables leave it out.
    pub disturbed: bool,
    /// What came of it.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// How a run ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Well.
    Measured(Measured),
    /// Not well.
    Failed(String),
}

/// What a run said of itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Over all ranks, by the clock, from the end of the 10th step to the end of the last; of ours without what
    /// happens between epochs.
    pub images_per_s: f64,
    /// The median step.
    pub step_ms_p50: f64,
    /// 95 % of steps take no longer.
    pub step_ms_p95: f64,
    /// From the command to the beginning of the first step.
    pub seconds_to_training: f64,
    /// The most memory that a rank used: of its process, or of its GPU.
    pub peak_memory_bytes: u64,
    /// Each timed step, where a run says it.
    #[serde(default)]
    pub step_ms: Vec<f64>,
    /// Where the time of the timed steps went, where a run says it.
    #[serde(default)]
    pub split: Option<Split>,
    /// The beginning and the end of what was timed, in seconds since 1970.
    #[serde(default)]
    pub timed: (f64, f64),
    /// Images in that time, where it is not all that `images_per_s` is over.
    #[serde(default)]
    pub images: Option<f64>,
    /// Used meanwhile, where it is counted.
    #[serde(default)]
    pub energy: Option<Energy>,
    /// All that it reported.
    pub raw: Value,
}

impl Measured {
    /// Energy an image, where it is counted.
    pub fn joules_per_image(&self) -> Option<f64> {
        let (from, to) = self.timed;
        let images = self.images.unwrap_or(self.images_per_s * (to - from));
        Some(self.energy.as_ref()?.joules / images)
    }
}

/// Milliseconds of a mean step, over all ranks. What no part accounts for is the rest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Split {
    /// Making the batch.
    pub data_ms: f64,
    /// From the images to the loss.
    pub forward_ms: f64,
    /// From the loss to the gradients of a rank.
    pub backward_ms: f64,
    /// Waiting for the slowest rank's gradients.
    pub skew_ms: f64,
    /// Waiting for the sum of all gradients after that.
    pub comm_exposed_ms: f64,
    /// Changing the weights.
    pub optimizer_ms: f64,
    /// Anything else: counting, recording, and waiting for others to have done so.
    pub other_ms: f64,
}

/// A part's name, and how long it is.
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
    /// With nothing measured yet.
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

    /// Whether `run` has failed before.
    pub fn has_failed(&self, run: Run<'_>) -> bool {
        let name = run.contestant.name();
        self.records.iter().any(|record| {
            let is_it = record.case == run.case.name && record.ranks == run.cell.ranks;
            is_it && record.contestant == name && record.measured().is_none()
        })
    }

    /// Whether any run ended well.
    pub fn has_results(&self) -> bool {
        self.records.iter().any(|record| record.measured().is_some())
            || !self.to_accuracy.is_empty()
    }

    /// The cases, in the order in which they ran.
    pub fn cases(&self) -> Vec<&str> {
        in_order(self.records.iter().map(|record| record.case.as_str()))
    }

    /// Rank counts and batches of a rank.
    pub fn sizes(&self, case: &str) -> Vec<(usize, usize)> {
        in_order(self.of(case).map(|record| (record.ranks, record.batch_per_rank)))
    }

    /// Who ended well at least once.
    pub fn contestants(&self, case: &str) -> Vec<&str> {
        let good = self.of(case).filter(|record| record.measured().is_some());
        in_order(good.map(|record| record.contestant.as_str()))
    }

    /// On how many nodes so many ranks ran.
    pub fn nodes(&self, case: &str, ranks: usize) -> usize {
        self.of(case).find(|record| record.ranks == ranks).map_or(1, |record| record.nodes)
    }

    fn of(&self, case: &str) -> impl Iterator<Item = &Record> {
        self.records.iter().filter(move |record| record.case == case)
    }

    /// Runs of `contestant` that ended well, undisturbed.
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

    /// Their images/s, by round.
    pub fn rates(&self, case: &str, ranks: usize, contestant: &str) -> Series {
        let runs = self.measured(case, ranks, contestant);
        runs.map(|(round, measured)| (round, measured.images_per_s)).collect()
    }
}

/// For records of a version that knew no others.
const fn one() -> usize {
    1
}

/// Each value once, where it came first.
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
    /// What it measured, if it ended well.
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

    /// The plan of a command line and a report without runs.
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

    /// A good run of the case of [`report`].
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
