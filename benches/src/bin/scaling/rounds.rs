//! Rounds in which everything runs once, so that disturbances of the machine affect all contestants alike.

use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::accuracy::AccuracyRun;
use crate::cli::Args;
use crate::energy::Meter;
use crate::load::{Load, Ticks};
use crate::machine::now;
use crate::ours::Ours;
use crate::peer::Peer;
use crate::plan::{Contestant, Goal, JobSize, Plan, Run};
use crate::record::{Measured, Outcome, Record, Report};

/// Most attempts at a run that other processes disturb; the last attempt counts.
const TRIES: usize = 5;

/// Most waits of one second for a quiet machine before a run.
const WAITS: usize = 1800;

/// Runs contestants one after the other.
pub struct Runner<'a> {
    /// The command line.
    pub args: &'a Args,
    /// Lockstep.
    pub ours: &'a Ours,
    /// PyTorch.
    pub peer: &'a Peer,
    /// Folder for results, which all nodes must see if there are several.
    pub out: &'a Path,
}

impl Runner<'_> {
    /// Runs all rounds, and calls `after_each` with the report after each run. A contestant that has failed
    /// once does not run again at that size.
    ///
    /// # Errors
    /// When temporary files cannot be made, or `after_each` fails.
    pub fn run(
        &self,
        plan: &Plan,
        report: &mut Report,
        after_each: impl Fn(&Report) -> Result<()>,
    ) -> Result<()> {
        for case in &plan.cases {
            if let Some(why) = &case.without_peers {
                eprintln!("scaling: {}: PyTorch is left out: {why}", case.name);
            }
        }
        for round in 1..=self.args.repeats {
            for one in plan.runs() {
                let is_here = !one.contestant.is_peer() || self.peer.versions().is_some();
                if is_here && !report.has_failed(one) {
                    self.run_undisturbed(one, round, report, &after_each)?;
                }
            }
        }
        Ok(())
    }

    /// Repeats `one` while other processes disturb it more than is allowed, up to [`TRIES`] times.
    fn run_undisturbed(
        &self,
        one: Run<'_>,
        round: usize,
        report: &mut Report,
        after_each: impl Fn(&Report) -> Result<()>,
    ) -> Result<()> {
        for tries_left in (0..TRIES).rev() {
            self.rest();
            let mut record = self.run_once(one, round)?;
            let is_above = |load: Load| self.args.max_others.is_some_and(|max| load.others > max);
            let is_loud = record.load.is_some_and(is_above);
            record.disturbed = is_loud && tries_left > 0 && record.measured().is_some();
            tell(&record, self.args.repeats);
            let runs_again = record.disturbed;
            report.records.push(record);
            after_each(report)?;
            if !runs_again {
                break;
            }
        }
        Ok(())
    }

    /// Pauses, and waits for a quiet machine if that is asked for.
    fn rest(&self) {
        sleep(Duration::from_secs(self.args.pause_seconds));
        let Some(max_others) = self.args.max_others else { return };
        for _ in 0..WAITS {
            let before = Ticks::now();
            sleep(Duration::from_secs(1));
            if Ticks::now().since(before).others <= max_others {
                return;
            }
        }
    }

    /// Trains each contestant, except isolated ranks, to the accuracy with each seed, and calls `after_each`
    /// with the report after each run.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn run_to_accuracy(
        &self,
        plan: &Plan,
        target: f64,
        report: &mut Report,
        after_each: impl Fn(&Report) -> Result<()>,
    ) -> Result<()> {
        for seed in 0..self.args.seeds {
            for one in plan.runs().filter(|one| !one.contestant.is_isolated()) {
                if one.contestant.is_peer() && self.peer.versions().is_none() {
                    continue;
                }
                self.rest();
                let timeout_seconds = self.args.timeout_seconds * one.case.epochs as u64;
                let run = self.train_to(one, Goal { target, seed, timeout_seconds })?;
                tell_accuracy(&run);
                report.to_accuracy.push(run);
                after_each(report)?;
            }
        }
        Ok(())
    }

    fn train_to(&self, one: Run<'_>, goal: Goal) -> Result<AccuracyRun> {
        let Run { case, size, contestant } = one;
        let folder = self.folder(size)?;
        let path = folder.path();
        let (started, before) = (now(), Ticks::now());
        let epochs = match contestant {
            Contestant::Peer(mode) => self.peer.train_to(case, size, *mode, path, goal),
            _ => self.ours.train_to(case, size, &contestant.overrides(), path, goal),
        };
        let load = load(size, before);
        let failure = epochs.as_ref().err().map(ToString::to_string);
        Ok(AccuracyRun {
            case: case.name.clone(),
            ranks: size.ranks,
            contestant: contestant.name(),
            seed: goal.seed,
            target: goal.target,
            started,
            load,
            epochs: epochs.unwrap_or_default(),
            failure,
        })
    }

    /// Creates the temporary folder of a run; with several nodes, in `out`, which all of them see.
    fn folder(&self, size: JobSize) -> Result<TempDir> {
        if size.nodes == 1 {
            return Ok(tempfile::tempdir()?);
        }
        let name = || self.out.display().to_string();
        let out = self.out.canonicalize().with_context(name)?;
        tempfile::Builder::new().prefix("run-").tempdir_in(out).with_context(name)
    }

    fn run_once(&self, one: Run<'_>, round: usize) -> Result<Record> {
        let Run { case, size, contestant } = one;
        let folder = self.folder(size)?;
        let is_here = size.nodes == 1;
        let meter = is_here.then(|| Meter::start(self.args.device(), size.ranks)).flatten();
        let (started, before) = (now(), Ticks::now());
        let mut measured = match contestant {
            Contestant::Peer(mode) => self.peer.measure(case, size, *mode, folder.path()),
            _ => self.ours.measure(case, size, &contestant.overrides(), folder.path()),
        };
        if let (Some(meter), Ok(measured)) = (meter, &mut measured) {
            let (from, to) = measured.timed;
            measured.energy = meter.stop(from, to);
        }
        Ok(Record {
            round,
            case: case.name.clone(),
            nodes: size.nodes,
            ranks: size.ranks,
            batch_per_rank: size.batch_per_rank,
            contestant: contestant.name(),
            started,
            load: load(size, before),
            disturbed: false,
            outcome: measured
                .map_or_else(|error| Outcome::Failed(error.to_string()), Outcome::Measured),
        })
    }
}

/// Returns the load since `before`, if this program has started all ranks itself: those on several nodes are
/// not its children, and would count as other processes.
fn load(size: JobSize, before: Ticks) -> Option<Load> {
    (size.nodes == 1).then(|| Ticks::now().since(before))
}

fn tell_accuracy(run: &AccuracyRun) {
    let AccuracyRun { case, ranks, contestant, seed, target, .. } = run;
    let end = match (&run.failure, run.reached()) {
        (Some(reason), _) => reason.clone(),
        (None, Some(end)) => format!("{:.1} s, {} epochs", end.seconds, end.epoch),
        (None, None) => "not reached".to_owned(),
    };
    eprintln!("to accuracy {target}, {case}, ranks {ranks}, {contestant}, seed {seed}: {end}");
}

/// Prints one line about a run on standard error.
fn tell(record: &Record, repeats: usize) {
    let Record { round, case, ranks, contestant, load, .. } = record;
    let again = if record.disturbed { ", disturbed, to be repeated" } else { "" };
    let head = format!("round {round}/{repeats}, {case}, ranks {ranks}, {contestant}{again}");
    match &record.outcome {
        Outcome::Measured(Measured { images_per_s, .. }) => {
            let load = load.map_or_else(String::new, |Load { others, steal }| {
                let (others, steal) = (others * 100.0, steal * 100.0);
                format!(" (others used {others:.1} % of the machine, the host took {steal:.1} %)")
            });
            eprintln!("{head}: {images_per_s:.0} images/s{load}");
        }
        Outcome::Failed(reason) => eprintln!("{head}: failed, left out from here on: {reason}"),
    }
}
