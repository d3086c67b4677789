//! Draws the figures of a study. Pure.

use figure::{Chart, Heading, Line, Panel, Picture, Point, Stroke, XAxis, YAxis, colour};

use super::expand::label;
use super::figures::{Quantity, X, shows};
use super::file::{FigureEntry, Metric, PanelEntry};
use super::planned::Planned;
use super::results::Statistic;

/// Fraction of the longest run, from its start, whose values may lie above the end of the y axis: networks
/// start with errors that would flatten all that comes after.
const TRANSIENT: f64 = 0.1;

/// Runs that form one line.
struct Group<'a> {
    name: String,
    runs: Vec<&'a Planned>,
}

/// Draws the figure `entry` of a study called `title`, as far as the runs have come.
pub fn draw(title: &str, entry: &FigureEntry, x: &X, runs: &[Planned]) -> Picture {
    let groups = groups(entry, runs);
    let whole = [PanelEntry { title: String::new(), only: serde_yaml::Mapping::new() }];
    let panels = if entry.panels.is_empty() { &whole[..] } else { &entry.panels };
    let lines: Vec<Vec<Line>> =
        panels.iter().map(|panel| lines(entry, x, panel, &groups)).collect();
    let y = y_axis(entry.y[0].quantity(), x, &lines);
    let quantity = match entry.y[..] {
        [metric] => metric.name(),
        _ => entry.y[0].quantity().name(),
    };
    let unit = entry.y[0].quantity().unit();
    let panel = |(panel, lines): (&PanelEntry, Vec<Line>)| {
        let start =
            if panel.title.is_empty() { String::new() } else { format!("{}: ", panel.title) };
        Panel {
            title: format!("{start}{quantity}, {unit}"),
            x_label: x.label(),
            x: match x {
                X::Epoch => XAxis::Epochs,
                X::GlobalBatchSize | X::Parameters | X::MultiplyAdds => XAxis::Log2,
                X::Step | X::Key(_) => XAxis::FromZero,
            },
            y,
            lines: cut(lines, y),
        }
    };
    let chart = Chart {
        heading: Some(Heading { title: title.to_owned(), subtitle: subtitle(entry, x, &groups) }),
        panels: panels.iter().zip(lines).map(panel).collect(),
        shares_y: true,
    };
    chart.draw()
}

fn subtitle(entry: &FigureEntry, x: &X, groups: &[Group<'_>]) -> String {
    let metrics = match entry.y[..] {
        [solid, dashed] => format!("{} (dashed: {})", solid.name(), dashed.name()),
        _ => entry.y[0].name().to_owned(),
    };
    // Number of runs behind each point.
    let counts: Vec<usize> =
        groups.iter().flat_map(|group| runs_of_points(x, &group.runs)).collect();
    let (least, most) = (counts.iter().min().unwrap_or(&1), counts.iter().max().unwrap_or(&1));
    let of = match (least, most) {
        (_, 1) => return format!("{metrics}, one run each"),
        (least, most) if least == most => format!("{most}"),
        (least, most) => format!("{least} to {most}"),
    };
    format!("{metrics}, mean and standard deviation of {of} runs")
}

fn runs_of_points(x: &X, runs: &[&Planned]) -> Vec<usize> {
    if x.is_within_run() {
        return vec![runs.len()];
    }
    let mut places: Vec<f64> = runs.iter().filter_map(|run| x.of_run(run)).collect();
    places.sort_by(f64::total_cmp);
    places.chunk_by(|a, b| a == b).map(<[f64]>::len).collect()
}

impl Quantity {
    const fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Accuracy => "accuracy",
            Self::Loss => "loss",
        }
    }

    const fn unit(self) -> &'static str {
        match self {
            Self::Error | Self::Accuracy => "%",
            Self::Loss => "nats",
        }
    }

    const fn scale(self) -> f64 {
        match self {
            Self::Error | Self::Accuracy => 100.0,
            Self::Loss => 1.0,
        }
    }
}

/// Groups runs that agree in the keys of `group_by`, or, without it, in everything but the seed.
fn groups<'a>(entry: &FigureEntry, runs: &'a [Planned]) -> Vec<Group<'a>> {
    let name = |run: &Planned| match &entry.group_by {
        None => run.spec.group.clone(),
        Some(keys) => {
            let of = |key: &String| Some(label(key, &run.value(key)?));
            keys.iter().filter_map(of).collect::<Vec<_>>().join(", ")
        }
    };
    let mut groups: Vec<Group<'a>> = Vec::new();
    for run in runs {
        let name = name(run);
        match groups.iter_mut().find(|group| group.name == name) {
            Some(group) => group.runs.push(run),
            None => groups.push(Group { name, runs: vec![run] }),
        }
    }
    groups
}

fn lines(entry: &FigureEntry, x: &X, panel: &PanelEntry, groups: &[Group<'_>]) -> Vec<Line> {
    // Colours start again in each panel, so that the first of each can be compared.
    let groups: Vec<(&Group<'_>, Vec<&Planned>)> = groups
        .iter()
        .map(|group| {
            let runs = group.runs.iter().copied();
            (group, runs.filter(|run| shows(&panel.only, run)).collect::<Vec<_>>())
        })
        .filter(|(_, runs)| !runs.is_empty())
        .collect();
    let strokes = [Stroke::Solid, Stroke::Dashed];
    let metrics: Vec<(Metric, Stroke)> = entry.y.iter().copied().zip(strokes).collect();
    // Dashed lines are drawn first, so they lie below solid ones.
    metrics
        .iter()
        .rev()
        .flat_map(|(metric, stroke)| {
            groups.iter().enumerate().map(move |(place, (group, runs))| Line {
                name: group.name.clone(),
                colour: colour(place),
                stroke: *stroke,
                points: points(*metric, x, runs),
            })
        })
        .collect()
}

/// Returns the points of a line: for each x, the mean and the standard deviation of the runs that are there.
fn points(metric: Metric, x: &X, runs: &[&Planned]) -> Vec<Point> {
    let mut values: Vec<(f64, f64)> = Vec::new();
    for run in runs {
        match x.of_run(run) {
            Some(at) => values.extend(run.results.last(metric).map(|value| (at, value))),
            None => values.extend(run.results.epochs.iter().filter_map(|epoch| {
                let at = match x {
                    X::Step => run.step_after(epoch.epoch) as f64,
                    _ => epoch.epoch as f64,
                };
                Some((at, metric.of(epoch)?))
            })),
        }
    }
    values.sort_by(|a, b| a.0.total_cmp(&b.0));
    let scale = metric.quantity().scale();
    let of_place = |values: &[(f64, f64)]| {
        let of: Vec<f64> = values.iter().map(|(_, value)| value * scale).collect();
        let Statistic { mean, std } = Statistic::of(&of)?;
        let std = std.unwrap_or(0.0);
        Some(Point { x: values[0].0, y: mean, range: (mean - std, mean + std) })
    };
    values.chunk_by(|a, b| a.0 == b.0).filter_map(of_place).collect()
}

fn y_axis(quantity: Quantity, x: &X, lines: &[Vec<Line>]) -> YAxis {
    if quantity == Quantity::Accuracy {
        return YAxis::Tight { span: 5.0, limit: 100.0 };
    }
    let points = || lines.iter().flatten().flat_map(|line| &line.points);
    let last = points().map(|point| point.x).fold(0.0, f64::max);
    let counts = |point: &&Point| !x.is_within_run() || point.x >= TRANSIENT * last;
    let highest = points().filter(counts).map(|point| point.range.1).filter(|y| y.is_finite());
    YAxis::FromZero { to: Some(highest.fold(0.0, f64::max) * 1.08) }
}

/// Removes points above the end of the y axis, and cuts ranges off there.
fn cut(lines: Vec<Line>, y: YAxis) -> Vec<Line> {
    let YAxis::FromZero { to: Some(to) } = y else { return lines };
    let cut = |mut line: Line| {
        line.points.retain(|point| point.y <= to);
        for point in &mut line.points {
            point.range = (point.range.0.max(0.0), point.range.1.min(to));
        }
        line
    };
    lines.into_iter().map(cut).collect()
}

#[cfg(test)]
mod tests;
