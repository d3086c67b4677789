//! Rounds in which everything runs once, so that what disturbs the machine disturbs all alike.

use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;

use crate::cli::Args;
use crate::load::Ticks;
use crate::machine::now;
use crate::ours::Ours;
use crate::peer::Peer;
use crate::plan::{Contestant, Plan, Run};
use crate::record::{Outcome, Record, Report};

/// How often a run is tried that others disturb; the last try counts.
const TRIES: usize = 5;

/// Waits of one second for a quiet machine, at most.
const WAITS: usize = 1800;

/// Runs things one after the other.
pub struct Runner<'a> {
    /// The command line.
    pub args: &'a Args,
    /// Us.
    pub ours: &'a Ours,
    /// PyTorch.
    pub peer: &'a Peer,
}

impl Runner<'_> {
    /// Runs all rounds, and hands over the report after each run. Who has failed once does not run
    /// again at that size.
    ///
    /// # Errors
    /// When there is no room for temporary files, or `after_each` fails.
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

    /// Runs `one` until others disturb it no more than they may.
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
            let is_loud = self.args.max_others.is_some_and(|max| record.load.others > max);
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

    /// Pauses, and waits for a quiet machine where that is asked for.
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

    fn run_once(&self, one: Run<'_>, round: usize) -> Result<Record> {
        let Run { case, cell, contestant } = one;
        let folder = tempfile::tempdir()?;
        let (started, before) = (now(), Ticks::now());
        let measured = match contestant {
            Contestant::Ours(variant) => self.ours.measure(case, cell, variant, folder.path()),
            Contestant::Peer(mode) => self.peer.measure(case, cell, *mode, folder.path()),
        };
        Ok(Record {
            round,
            case: case.name.clone(),
            ranks: cell.ranks,
            batch_per_rank: cell.batch_per_rank,
            contestant: contestant.name(),
            started,
            load: Ticks::now().since(before),
            disturbed: false,
            outcome: measured
                .map_or_else(|error| Outcome::Failed(error.to_string()), Outcome::Measured),
        })
    }
}

/// One line a run, on standard error.
fn tell(record: &Record, repeats: usize) {
    let Record { round, case, ranks, contestant, load, .. } = record;
    let again = if record.disturbed { ", disturbed, runs again" } else { "" };
    let head = format!("round {round}/{repeats}, {case}, ranks {ranks}, {contestant}{again}");
    match &record.outcome {
        Outcome::Measured(measured) => eprintln!(
            "{head}: {:.0} images/s (others used {:.1} % of the machine, the host took {:.1} %)",
            measured.images_per_s,
            load.others * 100.0,
            load.steal * 100.0
        ),
        Outcome::Failed(reason) => eprintln!("{head}: left out from here on: {reason}"),
    }
}
