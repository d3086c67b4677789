//! The summary of a report, as a document. Pure.

use crate::accuracy::Seeds;
use crate::document::{Align, Block, Table};
use crate::pictures;
use crate::record::{Measured, Outcome, Part, Report, Split};
use crate::stats::{Ratio, Spread, efficiency};

/// Share of the machine's time above which other processes may have changed the numbers.
const LOUD: f64 = 0.03;

/// Returns the summary of all cases, in order.
pub fn document(report: &Report) -> Vec<Block> {
    let mut blocks = vec![Block::Heading(1, "Scaling".to_owned())];
    blocks.extend(head(report).map(Block::Text));
    for case in report.cases() {
        blocks.push(Block::Heading(2, capitalized(case)));
        blocks.push(Block::Table(rates(case, report)));
        blocks.extend(pictures::scaling(case, report).map(Block::Picture));
        let ratios = ratios(case, report);
        if !ratios.is_empty() {
            blocks.push(Block::Text(
                "Images/s relative to each peer: ratio of medians (median of the ratios within \
                 each round; their min..max)."
                    .to_owned(),
            ));
            blocks.push(Block::Table(ratios));
        }
        blocks.extend(splits(case, report));
    }
    blocks.extend(to_accuracy(report));
    blocks.extend(notes(report).into_iter().map(Block::Text));
    blocks
}

fn head(report: &Report) -> impl Iterator<Item = String> {
    let machine = &report.machine;
    let mut hardware = format!(
        "{} logical CPUs of {}, {:.0} GiB, Linux {}",
        machine.logical_cpus,
        machine.cpu,
        gib(machine.memory_bytes),
        machine.kernel
    );
    for gpu in &machine.gpus {
        hardware.push_str(&format!("; {gpu}"));
    }
    let versions = &report.versions;
    let mut software = format!("Lockstep {}, {}", versions.lockstep, versions.rustc);
    if let Some(peer) = &versions.peer {
        let version = |name: &str| peer[name].as_str().unwrap_or("?").to_owned();
        software.push_str(&format!(
            ", PyTorch {} on Python {}",
            version("torch"),
            version("python")
        ));
    }
    let most = if report.most_seconds.is_some() { "at most " } else { "" };
    let when =
        format!("; {}; {most}{} timed steps a run, after 10 others", report.date, report.steps);
    [hardware, software + &when].into_iter()
}

/// Returns a table with one row per rank count and contestant.
fn rates(case: &str, report: &Report) -> Table {
    let has_energy = report.records.iter().any(|record| {
        record.measured().is_some_and(|measured| measured.joules_per_image().is_some())
    });
    let has_nodes = report.records.iter().any(|record| record.nodes > 1);
    let mut columns = vec![("ranks", Align::Right)];
    columns.extend(has_nodes.then_some(("nodes", Align::Right)));
    columns.extend([
        ("batch per rank", Align::Right),
        ("", Align::Left),
        ("images/s, median", Align::Right),
        ("min..max", Align::Right),
        ("runs", Align::Right),
        ("of one rank's rate", Align::Right),
        ("of isolated ranks", Align::Right),
        ("step, median ms", Align::Right),
        ("command to first step, s", Align::Right),
        ("peak memory of a rank, MiB", Align::Right),
    ]);
    columns.extend(has_energy.then_some(("energy, J an image", Align::Right)));
    let mut table = Table::new(columns);
    for (ranks, batch_per_rank) in report.sizes(case) {
        for name in report.contestants(case) {
            let runs: Vec<&Measured> =
                report.measured(case, ranks, name).map(|(_, run)| run).collect();
            let median = |value: &dyn Fn(&Measured) -> Option<f64>| {
                Spread::of(runs.iter().filter_map(|run| value(run))).map(|spread| spread.median)
            };
            let Some(rate) = Spread::of(runs.iter().map(|run| run.images_per_s)) else { continue };
            let number = |value: Option<f64>, digits: usize| {
                value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
            };
            let step_ms = median(&|run| Some(run.step_ms_p50));
            let mut row = vec![ranks.to_string()];
            row.extend(has_nodes.then(|| report.nodes(case, ranks).to_string()));
            row.extend([
                batch_per_rank.to_string(),
                name.to_owned(),
                format!("{:.0}", rate.median),
                format!("{:.0}..{:.0}", rate.min, rate.max),
                runs.len().to_string(),
                percent(of_one_rank(report, case, ranks, name)),
                percent(of_isolated(report, case, ranks, name)),
                number(step_ms, if step_ms.is_some_and(|ms| ms < 10.0) { 3 } else { 1 }),
                number(median(&|run| Some(run.seconds_to_training)), 2),
                number(median(&|run| Some(run.peak_memory_bytes as f64 / MIB)), 0),
            ]);
            row.extend(has_energy.then(|| number(median(&Measured::joules_per_image), 3)));
            table.row(row);
        }
    }
    table
}

const MIB: f64 = (1 << 20) as f64;

/// Returns the efficiency of `ranks` ranks relative to one rank of the same contestant.
pub fn of_one_rank(report: &Report, case: &str, ranks: usize, name: &str) -> Option<f64> {
    let median = |ranks| Some(Spread::of(report.rates(case, ranks, name).into_values())?.median);
    Some(efficiency(median(ranks)?, ranks, median(1)?))
}

/// Returns the efficiency relative to as many ranks that do not communicate.
fn of_isolated(report: &Report, case: &str, ranks: usize, name: &str) -> Option<f64> {
    let isolated = match name {
        "Lockstep" => "Lockstep, isolated",
        "PyTorch DDP, tuned" => "PyTorch DDP, none",
        _ => return None,
    };
    let alone = report.rates(case, ranks, isolated);
    Some(Ratio::of(&report.rates(case, ranks, name), &alone)?.of_medians)
}

/// Returns a table of Lockstep's rates over each peer's, by rank count.
fn ratios(case: &str, report: &Report) -> Table {
    let (peers, ours): (Vec<&str>, Vec<&str>) =
        report.contestants(case).into_iter().partition(|name| is_peer(name));
    let mut columns = vec![("ranks".to_owned(), Align::Right), (String::new(), Align::Left)];
    columns.extend(peers.iter().map(|peer| (format!("to {peer}"), Align::Right)));
    let mut table = Table::new(columns);
    for (ranks, _) in report.sizes(case) {
        for name in &ours {
            let mine = report.rates(case, ranks, name);
            if mine.is_empty() || peers.is_empty() {
                continue;
            }
            let ratio = |peer: &&str| {
                let ratio = Ratio::of(&mine, &report.rates(case, ranks, peer));
                ratio.map_or_else(|| "-".to_owned(), shown)
            };
            let mut row = vec![ranks.to_string(), (*name).to_owned()];
            row.extend(peers.iter().map(ratio));
            table.row(row);
        }
    }
    table
}

/// Returns whether a contestant is PyTorch.
pub fn is_peer(name: &str) -> bool {
    name.starts_with("PyTorch")
}

fn shown(ratio: Ratio) -> String {
    let Ratio { of_medians, by_round } = ratio;
    format!("{of_medians:.2} ({:.2}; {:.2}..{:.2})", by_round.median, by_round.min, by_round.max)
}

/// Returns how the time of a step is divided, as a table and a picture.
fn splits(case: &str, report: &Report) -> Vec<Block> {
    let mut columns = vec![("ranks", Align::Right), ("", Align::Left)];
    columns.extend(Split::PARTS.iter().map(|(name, _)| (*name, Align::Right)));
    columns.push(("sum", Align::Right));
    let mut table = Table::new(columns);
    let mut bars = Vec::new();
    for (ranks, _) in report.sizes(case) {
        for name in report.contestants(case) {
            let splits: Vec<Split> =
                report.measured(case, ranks, name).filter_map(|(_, run)| run.split).collect();
            let median =
                |(_, part): &Part| Spread::of(splits.iter().map(part)).map(|spread| spread.median);
            let parts: Option<Vec<f64>> = Split::PARTS.iter().map(median).collect();
            let Some(parts) = parts else { continue };
            let mut row = vec![ranks.to_string(), name.to_owned()];
            row.extend(parts.iter().chain([&parts.iter().sum()]).map(|ms| format!("{ms:.2}")));
            table.row(row);
            bars.push((ranks, name, parts));
        }
    }
    if table.is_empty() {
        return Vec::new();
    }
    let text = "Milliseconds of a step: medians over runs of their means over steps and ranks. Skew \
                is the wait for the slowest rank's gradients; exposed communication is the wait \
                after that, until gradients are reduced.";
    vec![
        Block::Text(text.to_owned()),
        Block::Table(table),
        Block::Picture(pictures::step(case, bars)),
    ]
}

fn to_accuracy(report: &Report) -> Vec<Block> {
    let groups = Seeds::group(&report.to_accuracy);
    let Some(first) = report.to_accuracy.first() else { return Vec::new() };
    let mut table = Table::new([
        ("", Align::Left),
        ("ranks", Align::Right),
        ("", Align::Left),
        ("seeds that reached it", Align::Right),
        ("epochs, median", Align::Right),
        ("seconds, median", Align::Right),
        ("min..max", Align::Right),
    ]);
    for group in &groups {
        let run = group.0[0];
        let seconds = group.seconds();
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        table.row(vec![
            run.case.clone(),
            run.ranks.to_string(),
            run.contestant.clone(),
            format!("{} of {}", group.reached().count(), group.0.len()),
            or_dash(group.epochs().map(|epochs| format!("{}", epochs.median))),
            or_dash(seconds.map(|seconds| format!("{:.1}", seconds.median))),
            or_dash(seconds.map(|seconds| format!("{:.1}..{:.1}", seconds.min, seconds.max))),
        ]);
    }
    let title = format!("Time to a test accuracy of {}", first.target);
    let text = "From the beginning of the first step, evaluations included; medians over the seeds \
                that reached it.";
    let mut blocks =
        vec![Block::Heading(2, title), Block::Text(text.to_owned()), Block::Table(table)];
    blocks.extend(pictures::accuracy(&groups).map(Block::Picture));
    blocks
}

/// Returns notes on what may invalidate the numbers: disturbances, and failed runs.
fn notes(report: &Report) -> Vec<String> {
    let mut notes = Vec::new();
    let (disturbed, used): (Vec<_>, Vec<_>) = report.records.iter().partition(|run| run.disturbed);
    if !disturbed.is_empty() {
        let count = disturbed.len();
        notes.push(format!("Runs that other processes disturbed, repeated and left out: {count}."));
    }
    let loads =
        used.iter().map(|run| run.load).chain(report.to_accuracy.iter().map(|run| run.load));
    let loads = loads.flatten();
    let loud = loads.clone().filter(|load| load.others.max(load.steal) > LOUD).count();
    if loud > 0 {
        notes.push(format!(
            "NOT A QUIET MACHINE: during {loud} of {} runs other processes, or the host, used more \
             than {:.0} % of it.",
            loads.count(),
            LOUD * 100.0
        ));
    }
    let failure = |who: &str, ranks: usize, reason: &str| {
        let first = reason.lines().next().unwrap_or_default();
        format!("{who} failed at {}: {first}", job::counted(ranks, "rank"))
    };
    for run in &report.records {
        if let Outcome::Failed(reason) = &run.outcome {
            notes.push(failure(&run.contestant, run.ranks, reason));
        }
    }
    for run in &report.to_accuracy {
        notes.extend(run.failure.iter().map(|reason| failure(&run.contestant, run.ranks, reason)));
    }
    notes
}

fn percent(share: Option<f64>) -> String {
    share.map_or_else(|| "-".to_owned(), |share| format!("{:.1} %", share * 100.0))
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
