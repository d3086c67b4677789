//! Axes: mapping values to pixels, and choosing the values to mark.

use crate::number::number;

/// The kind of an x axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum XAxis {
    /// Linear, from zero.
    FromZero,
    /// Linear, from the first epoch to the last, with marks at whole epochs.
    Epochs,
    /// Logarithmic to base 2, with a mark at each value.
    Log2,
}

/// The kind of a y axis.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum YAxis {
    /// Linear, from zero.
    FromZero {
        /// Upper end of the axis; `None` for a little above the largest value.
        to: Option<f64>,
    },
    /// Linear, between round values around the data, and never below zero.
    Tight {
        /// Least range that the axis covers, so that noise does not look like a trend.
        span: f64,
        /// Largest value that can occur, such as 1 for an accuracy; padding does not go beyond it.
        limit: f64,
    },
    /// Logarithmic.
    Log,
}

/// Maps values to pixels along one axis.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Scale {
    /// The values at the two ends, or their logarithms; they differ.
    ends: (f64, f64),
    is_log: bool,
    pixels: (f32, f32),
    /// The marked values, ascending, with their labels.
    pub(crate) marks: Vec<(f64, String)>,
}

impl Scale {
    /// Returns the pixel of `value`.
    pub(crate) fn at(&self, value: f64) -> f32 {
        let place = if self.is_log { logarithm(value) } else { value };
        let part = (place - self.ends.0) / (self.ends.1 - self.ends.0);
        self.pixels.0 + part as f32 * (self.pixels.1 - self.pixels.0)
    }

    fn new(ends: (f64, f64), is_log: bool, pixels: (f32, f32), marks: Vec<f64>) -> Self {
        let marks = marks.into_iter().map(|mark| (mark, number(mark))).collect();
        Self { ends, is_log, pixels, marks }
    }
}

impl XAxis {
    /// Returns the scale for `values` (at least one, all finite), from the left to the right pixel.
    pub(crate) fn scale(self, values: &[f64], pixels: (f32, f32)) -> Scale {
        let (first, last) = ends(values);
        match self {
            Self::FromZero => {
                let pad = room(0.0, last);
                Scale::new((-pad, last + pad), false, pixels, round_marks(0.0, last))
            }
            Self::Epochs => {
                let pad = room(first, last);
                let marks = epoch_marks(first as usize, last as usize);
                let marks = marks.into_iter().map(|epoch| epoch as f64).collect();
                Scale::new((first - pad, last + pad), false, pixels, marks)
            }
            Self::Log2 => {
                let ends = (logarithm(first), logarithm(last));
                let pad = room(ends.0, ends.1);
                let mut marks = values.to_vec();
                marks.sort_by(f64::total_cmp);
                marks.dedup();
                Scale::new((ends.0 - pad, ends.1 + pad), true, pixels, marks)
            }
        }
    }
}

impl YAxis {
    /// Returns the scale for `values` (all finite), from the lower to the upper pixel.
    pub(crate) fn scale(self, values: &[f64], pixels: (f32, f32)) -> Scale {
        let (low, high) = ends(values);
        match self {
            Self::FromZero { to } => {
                let to = to.unwrap_or(high * 1.08).max(1e-9);
                Scale::new((0.0, to), false, pixels, round_marks(0.0, to))
            }
            Self::Tight { span, limit } => tight((low, high), span, limit, pixels),
            Self::Log => {
                let (from, to) = (low.max(1e-9) / 1.4, high.max(1e-9) * 1.4);
                let ends = (logarithm(from), logarithm(to));
                Scale::new(ends, true, pixels, power_marks(from, to))
            }
        }
    }
}

/// Returns the smallest and the largest value; 0 and 1 if there are none.
fn ends(values: &[f64]) -> (f64, f64) {
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if low <= high { (low, high) } else { (0.0, 1.0) }
}

fn logarithm(value: f64) -> f64 {
    value.max(f64::MIN_POSITIVE).log2()
}

/// Returns the free space to leave before the first and after the last value.
fn room(from: f64, to: f64) -> f64 {
    match to - from {
        0.0 => 1.0,
        span => span * 0.06,
    }
}

/// Returns the smallest step of 1, 2, 2.5, 5 or 10 times a power of ten that divides `span` into at most
/// five.
fn round_step(span: f64) -> f64 {
    let rough = span.max(f64::MIN_POSITIVE) / 5.0;
    let power = 10f64.powf(rough.log10().floor());
    let steps = [1.0, 2.0, 2.5, 5.0, 10.0].map(|digit| digit * power);
    steps.into_iter().find(|step| *step >= rough * 0.999).unwrap_or(10.0 * power)
}

/// Returns about five round values between `from` and `to`.
fn round_marks(from: f64, to: f64) -> Vec<f64> {
    let step = round_step(to - from);
    let ticks = (from / step - 1e-9).ceil() as i64..=(to / step + 1e-9).floor() as i64;
    ticks.map(|tick| tick as f64 * step).collect()
}

/// Returns 1, 2 and 5 times each power of ten between `from` and `to`; above a ratio of 1000 only the powers.
fn power_marks(from: f64, to: f64) -> Vec<f64> {
    let powers = (from.log10().floor() as i32)..=(to.log10().ceil() as i32);
    let digits: &[f64] = if to / from > 1e3 { &[1.0] } else { &[1.0, 2.0, 5.0] };
    powers
        .flat_map(|power| digits.iter().map(move |digit| digit * 10f64.powi(power)))
        .filter(|mark| (from..=to).contains(mark))
        .collect()
}

/// Returns the epochs to mark from `first` to `last`: multiples of a round step, about ten at most.
fn epoch_marks(first: usize, last: usize) -> Vec<usize> {
    let span = last - first;
    let steps = (0..9).flat_map(|power| [1, 2, 5].map(|digit| digit * 10usize.pow(power)));
    let step = steps.into_iter().find(|step| span / step <= 10).unwrap_or(1);
    let mut marks: Vec<usize> = (first..=last).filter(|epoch| epoch.is_multiple_of(step)).collect();
    // The first epoch is marked too if there is room for its label.
    if marks.first().is_none_or(|mark| (mark - first) * 3 >= step * 2) {
        marks.insert(0, first);
    }
    marks
}

/// Returns a scale whose two ends are marked.
fn tight((low, high): (f64, f64), span: f64, limit: f64, pixels: (f32, f32)) -> Scale {
    let missing = (span - (high - low)).max(0.0);
    let (low, high) = ((low - missing / 2.0).max(0.0), (high + missing / 2.0).min(limit));
    let step = round_step(high - low);
    let first = (low / step + 1e-9).floor() as i64;
    let last = ((high / step - 1e-9).ceil() as i64).max(first + 1);
    let decimals = decimals(step);
    let value = |tick: i64| tick as f64 * step;
    let label = |value: f64| (value, format!("{value:.decimals$}"));
    let marks = (first..=last).map(|tick| label(value(tick))).collect();
    Scale { ends: (value(first), value(last)), is_log: false, pixels, marks }
}

/// Returns how many decimals are needed to tell multiples of `step` apart.
fn decimals(step: f64) -> usize {
    (0..12)
        .find(|decimals| {
            let shifted = step * 10f64.powi(*decimals);
            (shifted - shifted.round()).abs() < 1e-6
        })
        .map_or(12, |decimals| decimals as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_at_whole_epochs_and_few() {
        assert_eq!(epoch_marks(1, 1), [1]);
        assert_eq!(epoch_marks(1, 5), [1, 2, 3, 4, 5]);
        assert_eq!(epoch_marks(1, 20), [2, 4, 6, 8, 10, 12, 14, 16, 18, 20]);
        assert_eq!(epoch_marks(1, 50), [1, 5, 10, 15, 20, 25, 30, 35, 40, 45, 50]);
        for last in 1..3000 {
            let marks = epoch_marks(1, last);
            assert!((1..=12).contains(&marks.len()), "{last}: {marks:?}");
        }
    }

    fn labels(scale: &Scale) -> Vec<&str> {
        scale.marks.iter().map(|(_, label)| label.as_str()).collect()
    }

    fn tight(values: &[f64], limit: f64) -> Scale {
        YAxis::Tight { span: 0.1, limit }.scale(values, (0.0, 1.0))
    }

    #[test]
    fn values_are_marked_at_round_numbers() {
        assert_eq!(labels(&tight(&[43.0, 98.0], 100.0)), ["40", "60", "80", "100"]);
        assert_eq!(labels(&tight(&[0.21, 1.53], 9.9)), ["0.0", "0.5", "1.0", "1.5", "2.0"]);
        assert_eq!(labels(&tight(&[0.5, 0.62], 9.9))[..3], ["0.500", "0.525", "0.550"]);
        assert_eq!(tight(&[100.0], 100.0).marks.last().unwrap().1, "100.00");
        let steps = XAxis::FromZero.scale(&[391.0, 64_000.0], (0.0, 1.0));
        assert_eq!(labels(&steps), ["0", "20k", "40k", "60k"]);
        let powers = YAxis::Log.scale(&[90.0, 4000.0], (0.0, 1.0));
        assert_eq!(labels(&powers), ["100", "200", "500", "1000", "2000", "5000"]);
    }

    #[test]
    fn doublings_are_equally_far_apart_and_marked_where_values_are() {
        let scale = XAxis::Log2.scale(&[4.0, 1.0, 2.0, 1.0], (0.0, 100.0));
        assert_eq!(labels(&scale), ["1", "2", "4"]);
        assert!((scale.at(2.0) - scale.at(1.0) - (scale.at(4.0) - scale.at(2.0))).abs() < 1e-4);
    }

    #[test]
    fn every_value_lies_on_its_scale() {
        let cases: [&[f64]; 6] =
            [&[], &[0.0], &[100.0], &[50.0, 50.0], &[0.3, 0.3001], &[0.1, 1e12]];
        let axes = [YAxis::FromZero { to: None }, YAxis::Tight { span: 0.1, limit: 1e13 }];
        for values in cases {
            for axis in axes {
                let scale = axis.scale(values, (0.0, 1.0));
                assert!((1..=9).contains(&scale.marks.len()), "{values:?}: {scale:?}");
                let on_it = |value: &f64| (-1e-6..=1.0 + 1e-6).contains(&scale.at(*value));
                assert!(values.iter().all(on_it), "{values:?}: {scale:?}");
            }
        }
    }
}
