//! The Markdown that sums up a report. Pure.

use std::fmt::Write as _;

use crate::plan::{Case, Contestant, Plan};
use crate::record::{Measured, Outcome, Report};
use crate::stats::{Ratio, Spread, efficiency};

/// Above this share of the machine's time, others may have changed the numbers.
const LOUD: f64 = 0.03;

/// All cases, one after the other.
pub fn render(plan: &Plan, report: &Report) -> String {
    let mut text = head(report);
    for case in &plan.cases {
        text.push_str(&format!("\n## {}\n\n", capitalized(&case.name)));
        text.push_str(&rates(case, report));
        text.push_str(&ratios(case, report));
    }
    text.push_str(&notes(report));
    text
}

fn head(report: &Report) -> String {
    let machine = &report.machine;
    let mut text = format!(
        "# Scaling\n\n{} logical CPUs of {}, {:.0} GiB, Linux {}",
        machine.logical_cpus,
        machine.cpu,
        gib(machine.memory_bytes),
        machine.kernel
    );
    for gpu in &machine.gpus {
        text.push_str(&format!("; {gpu}"));
    }
    let versions = &report.versions;
    text.push_str(&format!("\n\nLockstep {}, {}", versions.lockstep, versions.rustc));
    if let Some(peer) = &versions.peer {
        let version = |name: &str| peer[name].as_str().unwrap_or("?").to_owned();
        text.push_str(&format!(", PyTorch {} on Python {}", version("torch"), version("python")));
    }
    text.push_str(&format!("; {} timed steps a run, after 10 others\n", report.steps));
    text
}

/// One row for everybody at every rank count.
fn rates(case: &Case, report: &Report) -> String {
    let mut text = String::from(
        "| ranks | batch a rank | | images/s, median | min..max | runs | of one rank's rate | step, \
         median ms | command to first step, s | peak memory of a rank, MiB |\n\
         |--:|--:|---|--:|--:|--:|--:|--:|--:|--:|\n",
    );
    for cell in &case.cells {
        for name in case.contestants.iter().map(Contestant::name) {
            let runs: Vec<&Measured> =
                report.measured(&case.name, cell.ranks, &name).map(|(_, run)| run).collect();
            let of = |value: fn(&Measured) -> f64| Spread::of(runs.iter().map(|run| value(run)));
            let Some(rate) = of(|run| run.images_per_s) else { continue };
            let alone = Spread::of(report.rates(&case.name, 1, &name).into_values());
            let share = alone.map_or_else(
                || "-".to_owned(),
                |one| format!("{:.1} %", efficiency(rate.median, cell.ranks, one.median) * 100.0),
            );
            let median =
                |value: fn(&Measured) -> f64| of(value).map_or(f64::NAN, |spread| spread.median);
            let _ = writeln!(
                text,
                "| {} | {} | {name} | {:.0} | {:.0}..{:.0} | {} | {share} | {:.1} | {:.2} | {:.0} |",
                cell.ranks,
                cell.batch_per_rank,
                rate.median,
                rate.min,
                rate.max,
                runs.len(),
                median(|run| run.step_ms_p50),
                median(|run| run.seconds_to_training),
                median(|run| run.peak_memory_bytes as f64) / f64::from(1 << 20),
            );
        }
    }
    text
}

/// Ours over each peer, at every rank count; nothing where there is no peer.
fn ratios(case: &Case, report: &Report) -> String {
    let (peers, ours): (Vec<_>, Vec<_>) =
        case.contestants.iter().partition(|contestant| contestant.is_peer());
    let has_run = |peer: &&Contestant| {
        case.cells.iter().any(|cell| !report.rates(&case.name, cell.ranks, &peer.name()).is_empty())
    };
    let peers: Vec<_> = peers.into_iter().filter(has_run).map(Contestant::name).collect();
    if peers.is_empty() {
        return String::new();
    }
    let mut text = String::from(
        "\nImages/s over those of each peer: ratio of medians (median of the ratios within each \
         round; their min..max).\n\n| ranks | |",
    );
    peers.iter().for_each(|peer| text.push_str(&format!(" to {peer} |")));
    text.push_str(&format!("\n|--:|---|{}\n", "--:|".repeat(peers.len())));
    for cell in &case.cells {
        for name in ours.iter().map(|contestant| contestant.name()) {
            let mine = report.rates(&case.name, cell.ranks, &name);
            if mine.is_empty() {
                continue;
            }
            text.push_str(&format!("| {} | {name} |", cell.ranks));
            for peer in &peers {
                let ratio = Ratio::of(&mine, &report.rates(&case.name, cell.ranks, peer));
                text.push_str(&format!(" {} |", ratio.map_or_else(|| "-".to_owned(), shown)));
            }
            text.push('\n');
        }
    }
    text
}

fn shown(ratio: Ratio) -> String {
    let Ratio { of_medians, by_round } = ratio;
    format!("{of_medians:.2} ({:.2}; {:.2}..{:.2})", by_round.median, by_round.min, by_round.max)
}

/// What speaks against the numbers.
fn notes(report: &Report) -> String {
    let mut text = String::new();
    let (disturbed, used): (Vec<_>, Vec<_>) = report.records.iter().partition(|run| run.disturbed);
    if !disturbed.is_empty() {
        let count = disturbed.len();
        let _ = writeln!(text, "\n{count} runs that others disturbed ran again and are left out.");
    }
    let count = used.iter().filter(|run| run.load.others.max(run.load.steal) > LOUD).count();
    if count > 0 {
        let _ = writeln!(
            text,
            "\n**Not a quiet machine**: during {count} of {} runs others, or the host, used more \
             than {:.0} % of it.",
            used.len(),
            LOUD * 100.0
        );
    }
    for run in &report.records {
        if let Outcome::Failed(reason) = &run.outcome {
            let first = reason.lines().next().unwrap_or_default();
            let _ = writeln!(text, "\n{} failed at {} ranks: {first}", run.contestant, run.ranks);
        }
    }
    text
}

fn capitalized(name: &str) -> String {
    let mut letters = name.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}

#[cfg(test)]
mod tests;
