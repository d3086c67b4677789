//! Axes: where values lie, and which of them are marked.

use super::Point;

/// Maps values to pixels, linearly.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Scale {
    /// The values at the ends; they differ.
    values: (f64, f64),
    /// The pixels at the ends.
    pixels: Point,
}

impl Scale {
    /// A scale from `values` to `pixels`.
    pub(super) fn new(values: (f64, f64), pixels: (f32, f32)) -> Self {
        Self { values, pixels }
    }

    /// The pixel of `value`.
    pub(super) fn at(&self, value: f64) -> f32 {
        let part = (value - self.values.0) / (self.values.1 - self.values.0);
        self.pixels.0 + part as f32 * (self.pixels.1 - self.pixels.0)
    }
}

/// The scale for epochs from the first to the last; a single one is in the middle.
pub(super) fn epoch_scale((first, last): (usize, usize), pixels: (f32, f32)) -> Scale {
    let pad = if first == last { 1.0 } else { 0.0 };
    Scale::new((first as f64 - pad, last as f64 + pad), pixels)
}

/// The epochs to mark from `first` to `last`: whole ones, about ten at most.
pub(super) fn epoch_ticks(first: usize, last: usize) -> Vec<usize> {
    let span = last - first;
    let step = round_steps().map(|step| step as usize).find(|step| span / step <= 10).unwrap_or(1);
    let mut ticks: Vec<usize> = (first..=last).filter(|epoch| epoch.is_multiple_of(step)).collect();
    // The first epoch is worth a mark where there is room for it.
    if ticks.first().is_none_or(|tick| (tick - first) * 3 >= step * 2) {
        ticks.insert(0, first);
    }
    ticks
}

/// 1, 2, 5, 10, 20, 50, ...
fn round_steps() -> impl Iterator<Item = f64> {
    (0..9).flat_map(|power| [1.0, 2.0, 5.0].map(|digit| digit * 10f64.powi(power)))
}

/// The scale for `values`, none of them negative, and the values to mark with their labels.
///
/// The ends are marked. `span`: the scale covers at least so much. `limit`: values do not go beyond
/// it, and the scale does not either.
pub(super) fn value_scale(
    values: impl Iterator<Item = f64>,
    span: f64,
    limit: f64,
    pixels: (f32, f32),
) -> (Scale, Vec<(f64, String)>) {
    let (mut low, mut high) = values
        .fold((f64::INFINITY, 0.0f64), |(low, high), value| (low.min(value), high.max(value)));
    if low > high {
        (low, high) = (0.0, 1.0); // no value at all
    }
    // Noise must not look like a trend.
    let missing = span - (high - low);
    if missing > 0.0 {
        (low, high) = ((low - missing / 2.0).max(0.0), (high + missing / 2.0).min(limit));
    }
    let rough = (high - low) / 5.0;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0]
        .map(|digit| digit * power)
        .into_iter()
        .find(|step| *step >= rough * 0.999)
        .unwrap_or(10.0 * power);
    let first = (low / step + 1e-9).floor() as i64;
    let last = ((high / step - 1e-9).ceil() as i64).max(first + 1);
    let decimals = decimals(step);
    let ticks = (first..=last)
        .map(|tick| tick as f64 * step)
        .map(|value| (value, format!("{value:.decimals$}")))
        .collect();
    (Scale::new((first as f64 * step, last as f64 * step), pixels), ticks)
}

/// How many decimals tell multiples of `step` apart.
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
        assert_eq!(epoch_ticks(1, 1), [1]);
        assert_eq!(epoch_ticks(1, 5), [1, 2, 3, 4, 5]);
        assert_eq!(epoch_ticks(1, 20), [2, 4, 6, 8, 10, 12, 14, 16, 18, 20]);
        assert_eq!(epoch_ticks(1, 50), [1, 5, 10, 15, 20, 25, 30, 35, 40, 45, 50]);
        assert_eq!(epoch_ticks(1, 200), [1, 20, 40, 60, 80, 100, 120, 140, 160, 180, 200]);
        for last in 1..3000 {
            let ticks = epoch_ticks(1, last);
            assert!((1..=12).contains(&ticks.len()), "{last}: {ticks:?}");
        }
    }

    fn labels(values: &[f64], limit: f64) -> Vec<String> {
        let (_, ticks) = value_scale(values.iter().copied(), 0.1, limit, (0.0, 1.0));
        ticks.into_iter().map(|(_, label)| label).collect()
    }

    #[test]
    fn values_are_marked_at_round_numbers() {
        assert_eq!(labels(&[43.0, 98.0], 100.0), ["40", "60", "80", "100"]);
        assert_eq!(labels(&[0.0, 100.0], 100.0), ["0", "20", "40", "60", "80", "100"]);
        assert_eq!(labels(&[0.21, 1.53], 9.9), ["0.0", "0.5", "1.0", "1.5", "2.0"]);
        assert_eq!(
            labels(&[0.5, 0.62], 9.9),
            ["0.500", "0.525", "0.550", "0.575", "0.600", "0.625"]
        );
    }

    #[test]
    fn every_value_lies_on_its_scale() {
        let cases: [&[f64]; 6] =
            [&[], &[0.0], &[100.0], &[50.0, 50.0], &[0.3, 0.3001], &[0.1, 1e12]];
        for values in cases {
            let (scale, ticks) = value_scale(values.iter().copied(), 0.1, 1e13, (0.0, 1.0));
            assert!((2..=9).contains(&ticks.len()), "{values:?}: {ticks:?}");
            for value in values {
                assert!((-1e-6..=1.0 + 1e-6).contains(&scale.at(*value)), "{values:?}: {scale:?}");
            }
        }
    }

    #[test]
    fn a_limit_is_not_passed() {
        assert_eq!(labels(&[100.0], 100.0).last().unwrap(), "100.00");
    }
}
