//! Median, spread and ratios. Pure.

use std::collections::BTreeMap;

use serde::Serialize;

/// Where values lie.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// Half of the values are smaller.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// Of `values`; `None` where there are none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let (low, high) = (sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2]);
        Some(Self { median: f64::midpoint(low, high), min, max })
    }
}

/// Values of one series by round.
pub type Series = BTreeMap<usize, f64>;

/// How one series compares to another of the same rounds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Ratio {
    /// The ratio of their medians.
    pub of_medians: f64,
    /// Of the ratios within each round that has both.
    pub by_round: Spread,
}

impl Ratio {
    /// `mine` over `theirs`; `None` where no round has both.
    pub fn of(mine: &Series, theirs: &Series) -> Option<Self> {
        let both = mine.iter().filter_map(|(round, value)| Some(value / theirs.get(round)?));
        let by_round = Spread::of(both)?;
        let median = |series: &Series| Spread::of(series.values().copied());
        Some(Self { of_medians: median(mine)?.median / median(theirs)?.median, by_round })
    }
}

/// What share of one rank's rate each of `ranks` ranks reaches.
pub fn efficiency(images_per_s: f64, ranks: usize, of_one_rank: f64) -> f64 {
    images_per_s / (ranks as f64 * of_one_rank)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_or_between_the_two_middle_ones() {
        assert_eq!(Spread::of([]), None);
        assert_eq!(Spread::of([3.0]), Some(Spread { median: 3.0, min: 3.0, max: 3.0 }));
        assert_eq!(Spread::of([9.0, 1.0, 2.0]), Some(Spread { median: 2.0, min: 1.0, max: 9.0 }));
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 9.0]).unwrap().median, 3.0);
    }

    #[test]
    fn ratios_compare_within_rounds() {
        let series = |values: &[(usize, f64)]| values.iter().copied().collect::<Series>();
        let mine = series(&[(1, 10.0), (2, 30.0), (3, 20.0)]);
        let theirs = series(&[(1, 5.0), (3, 20.0)]);
        let ratio = Ratio::of(&mine, &theirs).unwrap();
        assert_eq!(ratio.of_medians, 20.0 / 12.5);
        assert_eq!(ratio.by_round, Spread { median: 1.5, min: 1.0, max: 2.0 });
        assert_eq!(Ratio::of(&mine, &series(&[(4, 1.0)])), None);
    }

    #[test]
    fn two_ranks_at_twice_the_rate_are_fully_efficient() {
        assert_eq!(efficiency(200.0, 2, 100.0), 1.0);
    }
}
