//! Accuracy and loss by epoch, as a picture: what is drawn where.

mod scale;

use super::EpochRecord;
use crate::picture::{Anchor, Colour, GRID, INK, Picture, Point, QUIET, Shape};
use scale::{Scale, epoch_scale, epoch_ticks, value_scale};

/// In pixels.
const WIDTH: f32 = 1080.0;
const HEIGHT: f32 = 440.0;
const MARGIN: f32 = 32.0;
/// Room for the numbers beside an axis.
const AXIS_WIDTH: f32 = 40.0;
/// Where the plotting area starts and ends.
const PLOT_TOP: f32 = 114.0;
const PLOT_BOTTOM: f32 = HEIGHT - 58.0;
const GAP: f32 = 44.0;
/// With more epochs, points would run into one another.
const MOST_DOTS: usize = 40;

const AXIS: Colour = [156, 163, 175];
/// Blue and orange are told apart by the colour-blind too.
const TRAIN: Colour = [37, 99, 235];
const TEST: Colour = [234, 88, 12];

/// A picture of a run.
#[derive(Debug)]
pub(super) struct Chart {
    picture: Picture,
}

/// One of the two plots.
struct Panel<'a> {
    title: &'a str,
    left: f32,
    /// The first and the last.
    epochs: (usize, usize),
    /// What the scale covers at least.
    span: f64,
    /// The largest value that makes sense.
    limit: f64,
    train: Vec<(usize, f64)>,
    test: Vec<(usize, f64)>,
}

impl Chart {
    /// The picture of the run `name` after `epochs`, which are in order and at least one.
    pub(super) fn new(name: &str, epochs: &[EpochRecord]) -> Self {
        let mut chart = Self { picture: Picture::new(WIDTH, HEIGHT) };
        chart.picture.text((MARGIN, 38.0), name, 19.0, true, Anchor::Start, INK);
        chart.picture.text((MARGIN, 60.0), &headline(epochs), 13.0, false, Anchor::Start, QUIET);
        let series = |value: fn(&EpochRecord) -> f64| -> Vec<(usize, f64)> {
            let points = epochs.iter().map(|epoch| (epoch.epoch, value(epoch)));
            points.filter(|(_, value)| value.is_finite()).collect()
        };
        let range = (epochs[0].epoch, epochs[epochs.len() - 1].epoch);
        let ticks = epoch_ticks(range.0, range.1);
        let panel_width = (WIDTH - 2.0 * MARGIN - GAP) / 2.0;
        chart.panel(
            &ticks,
            panel_width,
            &Panel {
                title: "Accuracy (%)",
                left: MARGIN,
                epochs: range,
                span: 10.0,
                limit: 100.0,
                train: series(|epoch| epoch.train_accuracy * 100.0),
                test: series(|epoch| epoch.test_accuracy * 100.0),
            },
        );
        chart.panel(
            &ticks,
            panel_width,
            &Panel {
                title: "Cross-entropy loss (nats)",
                left: MARGIN + panel_width + GAP,
                epochs: range,
                span: 0.4,
                limit: f64::INFINITY,
                train: series(|epoch| epoch.train_loss),
                test: series(|epoch| epoch.test_loss),
            },
        );
        chart
    }

    fn panel(&mut self, ticks: &[usize], width: f32, panel: &Panel<'_>) {
        let (left, right) = (panel.left + AXIS_WIDTH, panel.left + width);
        let values = panel.train.iter().chain(&panel.test).map(|(_, value)| *value);
        let (y_scale, y_ticks) =
            value_scale(values, panel.span, panel.limit, (PLOT_BOTTOM, PLOT_TOP));
        let x_scale = epoch_scale(panel.epochs, (left + 14.0, right - 14.0));

        self.picture.text(
            (panel.left, PLOT_TOP - 18.0),
            panel.title,
            14.0,
            true,
            Anchor::Start,
            INK,
        );
        self.legend(right, PLOT_TOP - 18.0);
        for (value, label) in y_ticks {
            let y = y_scale.at(value);
            self.picture.line(vec![(left, y), (right, y)], 1.0, GRID);
            self.picture.text((left - 8.0, y + 4.0), &label, 12.0, false, Anchor::End, QUIET);
        }
        self.picture.line(vec![(left, PLOT_BOTTOM), (right, PLOT_BOTTOM)], 1.2, AXIS);
        for tick in ticks {
            let x = x_scale.at(*tick as f64);
            self.picture.line(vec![(x, PLOT_BOTTOM), (x, PLOT_BOTTOM + 5.0)], 1.2, AXIS);
            let at = (x, PLOT_BOTTOM + 20.0);
            self.picture.text(at, &tick.to_string(), 12.0, false, Anchor::Middle, QUIET);
        }
        let middle = (left + right) / 2.0;
        let at = (middle, PLOT_BOTTOM + 42.0);
        self.picture.text(at, "Epoch", 12.0, false, Anchor::Middle, QUIET);
        self.series(&panel.train, &x_scale, &y_scale, TRAIN);
        self.series(&panel.test, &x_scale, &y_scale, TEST);
    }

    fn series(&mut self, values: &[(usize, f64)], x: &Scale, y: &Scale, colour: Colour) {
        let points: Vec<Point> =
            values.iter().map(|(epoch, value)| (x.at(*epoch as f64), y.at(*value))).collect();
        let dots = if points.len() <= MOST_DOTS { 0 } else { points.len() - 1 };
        if points.len() > 1 {
            self.picture.line(points.clone(), 2.0, colour);
        }
        for at in &points[dots..] {
            self.picture.shapes.push(Shape::Dot { at: *at, radius: 3.6, colour });
        }
    }

    /// What the colours mean, ending at `right`.
    fn legend(&mut self, right: f32, baseline: f32) {
        for (name, colour, start) in [("train", TRAIN, right - 122.0), ("test", TEST, right - 54.0)]
        {
            let y = baseline - 4.5;
            self.picture.line(vec![(start, y), (start + 22.0, y)], 2.0, colour);
            self.picture.shapes.push(Shape::Dot { at: (start + 11.0, y), radius: 3.6, colour });
            self.picture.text((start + 28.0, baseline), name, 13.0, false, Anchor::Start, INK);
        }
    }

    /// The picture as an SVG document.
    pub(super) fn to_svg(&self) -> String {
        self.picture.to_svg()
    }

    /// The picture as a PNG file.
    pub(super) fn to_png(&self) -> Result<Vec<u8>, String> {
        self.picture.to_png()
    }
}

/// What there is to say in a line.
fn headline(epochs: &[EpochRecord]) -> String {
    let by_accuracy = |a: &&EpochRecord, b: &&EpochRecord| {
        a.test_accuracy.total_cmp(&b.test_accuracy).then(b.epoch.cmp(&a.epoch))
    };
    let last = &epochs[epochs.len() - 1];
    let percent = |fraction: f64| format!("{:.1} %", fraction * 100.0);
    let now = format!("test accuracy {} after epoch {}", percent(last.test_accuracy), last.epoch);
    match epochs.iter().filter(|epoch| epoch.test_accuracy.is_finite()).max_by(by_accuracy) {
        Some(best) if best.epoch != last.epoch => {
            format!("{now}; best {} after epoch {}", percent(best.test_accuracy), best.epoch)
        }
        _ => now,
    }
}

#[cfg(test)]
mod tests;
