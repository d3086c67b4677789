//! What is kept of every run.

use serde::Serialize;
use serde_json::Value;

use crate::cli::Args;
use crate::load::Load;
use crate::machine::{Machine, Versions, now};
use crate::plan::Run;
use crate::stats::Series;

/// All runs, with what is needed to repeat them.
#[derive(Serialize)]
pub struct Report {
    date: String,
    command: Vec<String>,
    /// Where all this ran.
    pub machine: Machine,
    /// Of what ran.
    pub versions: Versions,
    /// Steps that were timed, of each run.
    pub steps: u64,
    /// In the order in which they ran.
    pub records: Vec<Record>,
}

/// One run.
#[derive(Debug, Clone, Serialize)]
pub struct Record {
    /// From 1.
    pub round: usize,
    /// The case's name.
    pub case: String,
    /// How many ranks.
    pub ranks: usize,
    /// Images that each takes a step.
    pub batch_per_rank: usize,
    /// Who trained.
    pub contestant: String,
    /// When it began, in UTC.
    pub started: String,
    /// Who else used the processors meanwhile.
    pub load: Load,
    /// Whether it ran again because others disturbed it: tables leave it out.
    pub disturbed: bool,
    /// What came of it.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// How a run ended.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Well.
    Measured(Measured),
    /// Not well.
    Failed(String),
}

/// What a run said of itself.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Measured {
    /// Over all ranks, by the clock, from the end of the 10th step to the end of the last.
    pub images_per_s: f64,
    /// The median step.
    pub step_ms_p50: f64,
    /// 95 % of steps take no longer.
    pub step_ms_p95: f64,
    /// From the command to the beginning of the first step.
    pub seconds_to_training: f64,
    /// The most memory that a rank used: of its process, or of its GPU.
    pub peak_memory_bytes: u64,
    /// All that it reported.
    pub raw: Value,
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
            records: Vec::new(),
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

impl Record {
    /// What it measured, if it ended well.
    pub const fn measured(&self) -> Option<&Measured> {
        match &self.outcome {
            Outcome::Measured(measured) => Some(measured),
            Outcome::Failed(_) => None,
        }
    }
}
