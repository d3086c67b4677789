//! The pictures of a report.

use crate::accuracy::Seeds;
use figure::{Bar, Chart, Line, MUTED, Panel, Point, Stroke, XAxis, YAxis, colour};

use crate::document::Picture;
use crate::record::{Report, Split};
use crate::stats::{Spread, efficiency};

/// Draws throughput and efficiency by rank count; `None` if there is only one rank count.
pub fn scaling(case: &str, report: &Report) -> Option<Picture> {
    let sizes = report.sizes(case);
    if sizes.len() < 2 {
        return None;
    }
    let (mut rates, mut efficiencies) = (Vec::new(), Vec::new());
    for (index, name) in report.contestants(case).into_iter().enumerate() {
        let spread = |ranks| Spread::of(report.rates(case, ranks, name).into_values());
        let line = |value: &dyn Fn(f64, usize) -> Option<f64>| Line {
            name: name.to_owned(),
            colour: colour(index),
            stroke: Stroke::Solid,
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
        colour: MUTED,
        stroke: Stroke::Dashed,
        points: sizes.iter().map(|&(ranks, _)| Point::exact(ranks as f64, value(ranks))).collect(),
    };
    if let Some(alone) = Spread::of(report.rates(case, 1, "Lockstep").into_values()) {
        rates.push(ideal(&|ranks| alone.median * ranks as f64));
        efficiencies.push(ideal(&|_| 100.0));
    }
    let highest = efficiencies.iter().flat_map(|line| &line.points).map(|point| point.range.1);
    let to = highest.fold(100.0, f64::max) * 1.1;
    let drawn = throughput_and_efficiency(
        "ranks",
        ("Images a second", rates),
        ("Efficiency against one rank, %", efficiencies, to),
    );
    let alt = format!("{case}: images a second and efficiency by rank count");
    Some(Picture { name: slug(case, "scaling"), alt, drawn })
}

/// Draws two panels over rank counts; `to` is the upper end of the second panel's y axis.
pub fn throughput_and_efficiency(
    x_label: &str,
    (rates_title, rates): (&str, Vec<Line>),
    (efficiencies_title, efficiencies, to): (&str, Vec<Line>, f64),
) -> figure::Picture {
    let panel = |title: &str, y, lines| Panel {
        title: title.to_owned(),
        x_label: x_label.to_owned(),
        x: XAxis::Log2,
        y,
        lines,
    };
    let panels = vec![
        panel(rates_title, YAxis::Log, rates),
        panel(efficiencies_title, YAxis::FromZero { to: Some(to) }, efficiencies),
    ];
    Chart { panels, ..Chart::default() }.draw()
}

/// Draws the division of a step's time, with one bar per rank count and contestant.
pub fn step(case: &str, bars: Vec<(usize, &str, Vec<f64>)>) -> Picture {
    let bar = |(ranks, name, parts): (usize, &str, Vec<f64>)| {
        let short = name.strip_prefix("Lockstep, ").unwrap_or(name);
        let unit = if ranks == 1 { "rank" } else { "ranks" };
        Bar { name: format!("{ranks} {unit}\n{short}"), parts }
    };
    let bars: Vec<Bar> = bars.into_iter().map(bar).collect();
    let names = Split::PARTS.map(|(name, _)| name);
    let drawn = figure::stacked_bars("Milliseconds of a step", &names, &bars);
    let alt = format!("{case}: where the time of a step went");
    Picture { name: slug(case, "step"), alt, drawn }
}

/// Draws test accuracy against time, with one line per contestant: the means over its seeds.
pub fn accuracy(groups: &[Seeds<'_>]) -> Option<Picture> {
    let line = |(index, group): (usize, &Seeds<'_>)| {
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
        Line { name, colour: colour(index), stroke: Stroke::Solid, points: points.collect() }
    };
    let lines = groups.iter().enumerate().map(line);
    let lines: Vec<Line> = lines.filter(|line| !line.points.is_empty()).collect();
    if lines.is_empty() {
        return None;
    }
    let panel = Panel {
        title: "Test accuracy, mean over seeds".to_owned(),
        x_label: "seconds since the first step".to_owned(),
        x: XAxis::FromZero,
        y: YAxis::FromZero { to: Some(1.0) },
        lines,
    };
    let alt = "Test accuracy against time".to_owned();
    let drawn = Chart { panels: vec![panel], ..Chart::default() }.draw();
    Some(Picture { name: "accuracy".to_owned(), alt, drawn })
}

/// Returns a file name of lower-case letters, digits and hyphens.
pub fn slug(case: &str, what: &str) -> String {
    let words = case.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    let words: Vec<String> = words.map(str::to_ascii_lowercase).collect();
    format!("{}-{what}", words.join("-"))
}
