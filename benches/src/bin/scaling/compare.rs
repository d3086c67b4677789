//! Compares two reports, and tests whether chance explains the differences. Pure.

use crate::accuracy::Seeds;
use crate::document::{Align, Block, Table};
use crate::record::Report;
use crate::stats::{Spread, mann_whitney};

/// Significance level: the fraction of unchanged series that chance alone would call changed.
pub const SIGNIFICANCE: f64 = 0.05;

/// Values of one contestant at one size in both reports.
struct Pair {
    case: String,
    ranks: usize,
    contestant: String,
    /// Before and after.
    values: [Vec<f64>; 2],
}

/// Returns the comparison as a document. `names`: of the two reports, in order.
pub fn document(names: [&str; 2], reports: [&Report; 2]) -> Vec<Block> {
    let mut blocks = vec![Block::Heading(1, format!("{} compared to {}", names[1], names[0]))];
    blocks.extend(differences(reports).into_iter().map(Block::Text));
    let rates = table("images/s", names, &pairs(reports, rates), ["slower", "faster"]);
    let seconds = table("s", names, &pairs(reports, seconds), ["sooner", "later"]);
    for (title, table) in [("Images a second", rates), ("Seconds to the accuracy", seconds)] {
        if !table.is_empty() {
            blocks.extend([Block::Heading(2, title.to_owned()), Block::Table(table)]);
        }
    }
    blocks.push(Block::Text(format!(
        "Changes are those of medians. p is that of the exact two-sided Mann-Whitney test on the \
         rounds (or seeds); a change is significant where p is below {SIGNIFICANCE}, which takes \
         at least four rounds on each side. Of rows where nothing has changed, about one in {:.0} \
         is called significant.",
        1.0 / SIGNIFICANCE
    )));
    blocks
}

/// Returns what else may explain a change than the code.
fn differences([before, after]: [&Report; 2]) -> Vec<String> {
    let mut found = Vec::new();
    if before.machine != after.machine {
        found.push("The machines differ.".to_owned());
    }
    if before.versions.peer != after.versions.peer {
        found.push("The versions of PyTorch differ.".to_owned());
    }
    if before.versions.rustc != after.versions.rustc {
        found.push("The compilers differ.".to_owned());
    }
    let versions = [before, after].map(|report| report.versions.lockstep.as_str());
    found.push(format!("Lockstep {}, then {}.", versions[0], versions[1]));
    found
}

type Values = fn(&Report) -> Vec<(String, usize, String, Vec<f64>)>;

fn rates(report: &Report) -> Vec<(String, usize, String, Vec<f64>)> {
    let mut series: Vec<(String, usize, String, Vec<f64>)> = Vec::new();
    for record in report.records.iter().filter(|record| !record.disturbed) {
        let Some(measured) = record.measured() else { continue };
        let is_same = |found: &&mut (String, usize, String, Vec<f64>)| {
            (&found.0, found.1, &found.2) == (&record.case, record.ranks, &record.contestant)
        };
        match series.iter_mut().find(is_same) {
            Some((.., values)) => values.push(measured.images_per_s),
            None => series.push((
                record.case.clone(),
                record.ranks,
                record.contestant.clone(),
                vec![measured.images_per_s],
            )),
        }
    }
    series
}

fn seconds(report: &Report) -> Vec<(String, usize, String, Vec<f64>)> {
    let of = |seeds: Seeds<'_>| {
        let first = seeds.0[0];
        let values = seeds.reached().map(|end| end.seconds).collect();
        (first.case.clone(), first.ranks, first.contestant.clone(), values)
    };
    Seeds::group(&report.to_accuracy).into_iter().map(of).collect()
}

fn pairs([before, after]: [&Report; 2], values: Values) -> Vec<Pair> {
    let after = values(after);
    let both = |(case, ranks, contestant, old): (String, usize, String, Vec<f64>)| {
        let is_same = |new: &&(String, usize, String, Vec<f64>)| {
            (&new.0, new.1, &new.2) == (&case, ranks, &contestant)
        };
        let new = after.iter().find(is_same)?.3.clone();
        (!old.is_empty() && !new.is_empty()).then_some(Pair {
            case,
            ranks,
            contestant,
            values: [old, new],
        })
    };
    values(before).into_iter().filter_map(both).collect()
}

fn table(unit: &str, names: [&str; 2], pairs: &[Pair], [less, more]: [&str; 2]) -> Table {
    let mut table = Table::new([
        ("case".to_owned(), Align::Left),
        ("ranks".to_owned(), Align::Right),
        ("".to_owned(), Align::Left),
        (format!("{}, median {unit} (rounds)", names[0]), Align::Right),
        (format!("{}, median {unit} (rounds)", names[1]), Align::Right),
        ("change".to_owned(), Align::Right),
        ("p".to_owned(), Align::Right),
        ("".to_owned(), Align::Left),
    ]);
    for Pair { case, ranks, contestant, values: [old, new] } in pairs {
        let median = |values: &[f64]| {
            Spread::of(values.iter().copied()).map_or(f64::NAN, |spread| spread.median)
        };
        let (before, after, p) = (median(old), median(new), mann_whitney(old, new));
        let verdict = match () {
            () if old.len().min(new.len()) < 4 => "too few rounds to tell",
            () if p >= SIGNIFICANCE => "within the noise",
            () if after > before => more,
            () => less,
        };
        table.row(vec![
            case.clone(),
            ranks.to_string(),
            contestant.clone(),
            format!("{before:.0} ({})", old.len()),
            format!("{after:.0} ({})", new.len()),
            format!("{:+.1} %", (after / before - 1.0) * 100.0),
            format!("{p:.3}"),
            verdict.to_owned(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::to_markdown;
    use crate::record::tests::{report, run};

    fn compared(old: &[f64], new: &[f64]) -> String {
        let of = |rates: &[f64]| {
            let mut report = report(&[]).1;
            for (round, rate) in rates.iter().enumerate() {
                report.records.push(run(round + 1, 2, "Lockstep", *rate));
            }
            report
        };
        to_markdown(&document(["A", "B"], [&of(old), &of(new)]))
    }

    #[test]
    fn a_change_that_chance_does_not_explain_is_called_one() {
        let old = [100.0, 101.0, 102.0, 103.0, 99.0];
        let text = compared(&old, &[112.0, 111.0, 110.0, 113.0, 109.0]);
        assert!(text.contains("| 101 (5) | 111 (5) | +9.9 % | 0.008 | faster |"), "{text}");
        let text = compared(&old, &[101.5, 100.5, 98.0, 103.5, 102.5]);
        assert!(text.contains("within the noise"), "{text}");
    }

    #[test]
    fn three_rounds_prove_nothing() {
        let text = compared(&[100.0, 101.0, 102.0], &[200.0, 201.0, 202.0]);
        assert!(text.contains("too few rounds to tell"), "{text}");
    }
}
