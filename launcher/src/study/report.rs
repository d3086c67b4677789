//! `study.json` and `study.md`: every run, and mean and standard deviation over seeds.

use std::fmt::Write as _;

use job::config::in_one_line;
use job::{counted, thousands};
use serde_json::{Value, json};

use super::file::{Metric, StudyFile};
use super::planned::{Planned, State};
use super::results::Statistic;
use super::run::Failure;

/// Report on a study, whose runs may not all be done.
pub struct Report<'a> {
    /// The study file.
    pub study: &'a StudyFile,
    /// Whether the study was run in its reduced size.
    pub reduced: bool,
    /// Number of ranks of each run.
    pub ranks: usize,
    /// All runs.
    pub runs: &'a [Planned],
    /// Runs that failed in this invocation, as an index into `runs`, and why.
    pub failed: &'a [(usize, Failure)],
}

/// A column of the table: heading, value for a run, factor by which it is multiplied, and number of decimals.
type Column = (&'static str, fn(&Planned) -> Option<f64>, f64, usize);

const COLUMNS: [Column; 5] = [
    ("test accuracy, %", |run| run.results.last(Metric::TestAccuracy), 100.0, 2),
    ("best test accuracy, %", |run| run.results.best_test_accuracy(), 100.0, 2),
    ("training error, %", |run| run.results.last(Metric::TrainError), 100.0, 2),
    ("test loss", |run| run.results.last(Metric::TestLoss), 1.0, 4),
    ("minutes", |run| Some(run.results.train_seconds()), 1.0 / 60.0, 1),
];

impl Report<'_> {
    /// Returns all runs as one JSON object.
    pub fn to_json(&self) -> Value {
        let runs: Vec<Value> = self.runs.iter().enumerate().map(|run| self.run_json(run)).collect();
        let groups: Vec<Value> =
            self.groups().iter().map(|(name, runs)| group_json(name, runs)).collect();
        json!({
            "title": self.study.title,
            "source": self.study.source,
            "reduced": self.reduced,
            "ranks": self.ranks,
            "groups": groups,
            "runs": runs,
        })
    }

    fn run_json(&self, (index, run): (usize, &Planned)) -> Value {
        let set = |it: &super::expand::Override| {
            (it.key.clone(), serde_json::to_value(&it.value).unwrap_or(Value::Null))
        };
        let results = &run.results;
        let test_accuracy = results.last(Metric::TestAccuracy);
        let failure = self.failed.iter().find(|(failed, _)| *failed == index);
        json!({
            "name": run.spec.name,
            "group": run.spec.group,
            "seed": run.spec.seed,
            "state": run.state.as_str(),
            "failure": failure.map(|(_, failure)| &failure.reason),
            "set": run.spec.overrides.iter().map(set).collect::<serde_json::Map<_, _>>(),
            "global_batch_size": run.global_batch_size,
            "parameters": run.parameters,
            "multiply_adds": run.multiply_adds,
            "steps": run.steps,
            "epochs_completed": results.epochs.len(),
            "test_accuracy": test_accuracy,
            "best_test_accuracy": results.best_test_accuracy(),
            "test_loss": results.last(Metric::TestLoss),
            "train_error": results.last(Metric::TrainError),
            "train_loss": results.last(Metric::TrainLoss),
            "train_seconds": results.train_seconds(),
        })
    }

    /// Groups runs that differ in the seed only, in order.
    fn groups(&self) -> Vec<(&str, Vec<&Planned>)> {
        let mut groups: Vec<(&str, Vec<&Planned>)> = Vec::new();
        for run in self.runs {
            match groups.iter_mut().find(|(name, _)| *name == run.spec.group) {
                Some((_, runs)) => runs.push(run),
                None => groups.push((&run.spec.group, vec![run])),
            }
        }
        groups
    }

    /// Returns a page for people, in Markdown.
    pub fn to_markdown(&self) -> String {
        let mut text = format!("# {}\n\n", self.study.title);
        if !self.study.source.is_empty() {
            let _ = writeln!(text, "Source: {}.\n", self.study.source.trim_end_matches('.'));
        }
        if self.reduced {
            let set = &self.study.reduced.set;
            let set = set
                .iter()
                .map(|(key, value)| format!("`{}={}`", in_one_line(key), in_one_line(value)));
            let _ = writeln!(text, "Reduced: {}.\n", set.collect::<Vec<_>>().join(", "));
        }
        self.table(&mut text);
        for figure in &self.study.figures {
            let name = &figure.name;
            let _ = writeln!(text, "\n![{name}]({name}.png)");
        }
        self.unfinished(&mut text);
        text
    }

    fn table(&self, text: &mut String) {
        text.push_str(
            "Of the runs that are done, after the last epoch: the mean over seeds and the sample standard \
             deviation. The training error is measured while weights change, on augmented images.\n\n",
        );
        let names: Vec<&str> = COLUMNS.iter().map(|(name, ..)| *name).collect();
        let _ = writeln!(
            text,
            "| | parameters | multiply-adds | steps | runs | {} |",
            names.join(" | ")
        );
        let _ = writeln!(text, "|---|--:|--:|--:|--:|{}", "--:|".repeat(names.len()));
        for (name, runs) in self.groups() {
            let cells: Vec<String> = COLUMNS.iter().map(|column| cell(column, &runs)).collect();
            let done = done(&runs).count();
            let Planned { parameters, multiply_adds, steps, .. } = runs[0];
            let (of, cells) = (runs.len(), cells.join(" | "));
            let _ = writeln!(
                text,
                "| {name} | {} | {} | {steps} | {done} of {of} | {cells} |",
                thousands(*parameters as u64),
                thousands(*multiply_adds)
            );
        }
    }

    fn unfinished(&self, text: &mut String) {
        let lines: Vec<String> = self
            .runs
            .iter()
            .enumerate()
            .filter(|(_, run)| run.state != State::Done)
            .map(|(index, run)| {
                let failure = self.failed.iter().find(|(failed, _)| *failed == index);
                let why = failure.map(|(_, it)| {
                    format!(": failed with exit code {}: {}", it.exit_code as u8, it.reason)
                });
                let (epochs, of) = (run.results.epochs.len(), counted(run.epochs, "epoch"));
                format!("- {}, {epochs} of {of}{}", run.spec.name, why.unwrap_or_default())
            })
            .collect();
        if !lines.is_empty() {
            let _ = writeln!(text, "\nNot done:\n\n{}", lines.join("\n"));
        }
    }
}

fn done<'a>(runs: &[&'a Planned]) -> impl Iterator<Item = &'a Planned> {
    runs.iter().copied().filter(|run| run.state == State::Done)
}

fn statistic((_, value, scale, _): &Column, runs: &[&Planned]) -> Option<Statistic> {
    let values: Vec<f64> = done(runs).filter_map(value).map(|value| value * scale).collect();
    Statistic::of(&values)
}

fn cell(column: &Column, runs: &[&Planned]) -> String {
    let decimals = column.3;
    match statistic(column, runs) {
        Some(Statistic { mean, std: Some(std) }) => format!("{mean:.decimals$} ± {std:.decimals$}"),
        Some(Statistic { mean, std: None }) => format!("{mean:.decimals$}"),
        None => "-".to_owned(),
    }
}

fn group_json(name: &str, runs: &[&Planned]) -> Value {
    let statistic = |value: fn(&Planned) -> Option<f64>| {
        let values: Vec<f64> = done(runs).filter_map(value).collect();
        Statistic::of(&values).map(|it| json!({"mean": it.mean, "std": it.std}))
    };
    json!({
        "name": name,
        "runs": runs.len(),
        "done": done(runs).count(),
        "test_accuracy": statistic(|run| run.results.last(Metric::TestAccuracy)),
        "best_test_accuracy": statistic(|run| run.results.best_test_accuracy()),
        "train_error": statistic(|run| run.results.last(Metric::TrainError)),
        "train_seconds": statistic(|run| Some(run.results.train_seconds())),
    })
}
