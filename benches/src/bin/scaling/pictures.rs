//! Which pictures a report has.

use crate::accuracy::Seeds;
use crate::chart::{self, Axis, Bar, Line, Panel, Point};
use crate::document::Picture;
use crate::error::Result;
use crate::record::{Report, Split};
use crate::stats::{Spread, efficiency};

/// Throughput and efficiency against rank counts; `None` where there is one only.
pub fn scaling(case: &str, report: &Report) -> Result<Option<Picture>> {
    let sizes = report.sizes(case);
    if sizes.len() < 2 {
        return Ok(None);
    }
    let (mut rates, mut efficiencies) = (Vec::new(), Vec::new());
    for name in report.contestants(case) {
        let spread = |ranks| Spread::of(report.rates(case, ranks, name).into_values());
        let line = |value: &dyn Fn(f64, usize) -> Option<f64>| Line {
            name: name.to_owned(),
            is_ideal: false,
            points: sizes
                .iter()
                .filter_map(|&(ranks, _)| {
                    let Spread { median, min, max } = spread(ranks)?;
                    Some(Point {
                        x: ranks as f64,
                        y: value(median, ranks)?,
                        range: (value(min, ranks)?, value(max, ranks)?),
                    })
                })
                .collect(),
        };
        let alone = spread(1).map(|spread| spread.median);
        rates.push(line(&|rate, _| Some(rate)));
        efficiencies.push(line(&|rate, ranks| Some(efficiency(rate, ranks, alone?) * 100.0)));
    }
    let ideal = |value: &dyn Fn(usize) -> f64| Line {
        name: "Lockstep, ideal".to_owned(),
        is_ideal: true,
        points: sizes
            .iter()
            .map(|&(ranks, _)| {
                let y = value(ranks);
                Point { x: ranks as f64, y, range: (y, y) }
            })
            .collect(),
    };
    if let Some(alone) = Spread::of(report.rates(case, 1, "Lockstep").into_values()) {
        rates.push(ideal(&|ranks| alone.median * ranks as f64));
        efficiencies.push(ideal(&|_| 100.0));
    }
    let highest = efficiencies.iter().flat_map(|line| &line.points).map(|point| point.range.1);
    let y_max = Some(highest.fold(100.0, f64::max) * 1.1);
    let panel = |title: &str, y_max, lines| Panel {
        title: title.to_owned(),
        x_label: "ranks",
        axis: Axis::Doublings,
        y_max,
        lines,
    };
    let svg = chart::lines(&[
        panel("Images a second", None, rates),
        panel("Efficiency against one rank, %", y_max, efficiencies),
    ])?;
    let alt = format!("{case}: images a second and efficiency by rank count");
    Ok(Some(Picture { name: slug(case, "scaling"), alt, svg }))
}

/// Where the time of a step went; a bar for everybody at every rank count.
pub fn step(case: &str, bars: Vec<(usize, &str, Vec<f64>)>) -> Result<Picture> {
    let bar = |(ranks, name, parts): (usize, &str, Vec<f64>)| {
        let short = name.strip_prefix("Lockstep, ").unwrap_or(name);
        let unit = if ranks == 1 { "rank" } else { "ranks" };
        Bar { name: format!("{ranks} {unit}\n{short}"), parts }
    };
    let bars: Vec<Bar> = bars.into_iter().map(bar).collect();
    let names = Split::PARTS.map(|(name, _)| name);
    let svg = chart::stacked_bars("Milliseconds of a step", "ms", &names, &bars)?;
    let alt = format!("{case}: where the time of a step went");
    Ok(Picture { name: slug(case, "step"), alt, svg })
}

/// Test accuracy against time, a line a contestant: the means over its seeds.
pub fn accuracy(groups: &[Seeds<'_>]) -> Result<Option<Picture>> {
    let line = |group: &Seeds<'_>| {
        let first = group.0[0];
        let epochs = group.0.iter().map(|run| run.epochs.len()).min().unwrap_or(0);
        let points = (0..epochs).map(|epoch| {
            let ends = || group.0.iter().map(|run| run.epochs[epoch]);
            let count = group.0.len() as f64;
            let accuracies = Spread::of(ends().map(|end| end.test_accuracy));
            Point {
                x: ends().map(|end| end.seconds).sum::<f64>() / count,
                y: ends().map(|end| end.test_accuracy).sum::<f64>() / count,
                range: accuracies.map_or((0.0, 0.0), |spread| (spread.min, spread.max)),
            }
        });
        let name = format!("{}, {} ranks", first.contestant, first.ranks);
        Line { name, points: points.collect(), is_ideal: false }
    };
    let lines: Vec<Line> = groups.iter().map(line).filter(|line| !line.points.is_empty()).collect();
    if lines.is_empty() {
        return Ok(None);
    }
    let panel = Panel {
        title: "Test accuracy, mean over seeds".to_owned(),
        x_label: "seconds since the first step",
        axis: Axis::Linear,
        y_max: Some(1.0),
        lines,
    };
    let alt = "Test accuracy against time".to_owned();
    Ok(Some(Picture { name: "accuracy".to_owned(), alt, svg: chart::lines(&[panel])? }))
}

/// A file name of lower-case letters, digits and hyphens.
pub fn slug(case: &str, what: &str) -> String {
    let words = case.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    let words: Vec<String> = words.map(str::to_ascii_lowercase).collect();
    format!("{}-{what}", words.join("-"))
}
