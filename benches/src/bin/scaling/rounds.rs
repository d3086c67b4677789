//! Rounds in which everything runs once, so that what disturbs the machine disturbs all alike.

use std::collections::BTreeSet;
use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;

use crate::cli::Args;
use crate::error;
use crate::load::Ticks;
use crate::machine::now;
use crate::ours::Ours;
use crate::peer::Peer;
use crate::plan::{Case, Cell, Contestant, Plan};
use crate::record::{Measured, Outcome, Record, Report};

/// Runs all rounds, and hands over the report after each run. Who has failed once does not run
/// again at that size.
///
/// # Errors
/// When there is no room for temporary files, or `after_each` fails.
pub fn run(
    args: &Args,
    plan: &Plan,
    ours: &Ours,
    peer: &Peer,
    report: &mut Report,
    mut after_each: impl FnMut(&Report) -> Result<()>,
) -> Result<()> {
    for case in &plan.cases {
        if let Some(why) = &case.without_peers {
            eprintln!("scaling: {}: PyTorch is left out: {why}", case.name);
        }
    }
    let mut failed = BTreeSet::new();
    for round in 1..=args.repeats {
        for (index, case) in plan.cases.iter().enumerate() {
            for &cell in &case.cells {
                for contestant in &case.contestants {
                    let key = (index, cell.ranks, contestant.name());
                    if contestant.is_peer() && peer.versions().is_none() || failed.contains(&key) {
                        continue;
                    }
                    sleep(Duration::from_secs(args.pause_seconds));
                    let record = run_one(case, cell, contestant, round, ours, peer)?;
                    tell(&record, args.repeats);
                    if record.measured().is_none() {
                        failed.insert(key);
                    }
                    report.records.push(record);
                    after_each(report)?;
                }
            }
        }
    }
    Ok(())
}

fn run_one(
    case: &Case,
    cell: Cell,
    contestant: &Contestant,
    round: usize,
    ours: &Ours,
    peer: &Peer,
) -> Result<Record> {
    let folder = tempfile::tempdir()?;
    let (started, before) = (now(), Ticks::now());
    let measured: error::Result<Measured> = match contestant {
        Contestant::Ours(variant) => ours.measure(case, cell, variant, folder.path()),
        Contestant::Peer(mode) => peer.measure(case, cell, *mode, folder.path()),
    };
    Ok(Record {
        round,
        case: case.name.clone(),
        ranks: cell.ranks,
        batch_per_rank: cell.batch_per_rank,
        contestant: contestant.name(),
        started,
        load: Ticks::now().since(before),
        outcome: match measured {
            Ok(measured) => Outcome::Measured(measured),
            Err(error) => Outcome::Failed(error.to_string()),
        },
    })
}

/// One line a run, on standard error.
fn tell(record: &Record, repeats: usize) {
    let Record { round, case, ranks, contestant, load, .. } = record;
    let head = format!("round {round}/{repeats}, {case}, ranks {ranks}, {contestant}");
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
