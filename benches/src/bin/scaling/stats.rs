//! Median, spread and ratios. Pure.

use std::collections::BTreeMap;

use serde::Serialize;

/// Median and range of some values.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// The median; of an even number of values, the mean of the middle two.
    pub median: f64,
    /// The smallest value.
    pub min: f64,
    /// The largest value.
    pub max: f64,
}

impl Spread {
    /// Returns the spread of `values`, or `None` if there are none.
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

/// Ratio of one series to another of the same rounds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Ratio {
    /// The ratio of their medians.
    pub of_medians: f64,
    /// Spread of the ratios within each round that has both.
    pub by_round: Spread,
}

impl Ratio {
    /// Returns the ratio of `mine` to `theirs`, or `None` if no round has both.
    pub fn of(mine: &Series, theirs: &Series) -> Option<Self> {
        let both = mine.iter().filter_map(|(round, value)| Some(value / theirs.get(round)?));
        let by_round = Spread::of(both)?;
        let median = |series: &Series| Spread::of(series.values().copied());
        Some(Self { of_medians: median(mine)?.median / median(theirs)?.median, by_round })
    }
}

/// Returns the two-sided p-value of the exact Mann-Whitney test: how often two series of these lengths would
/// be at least this far apart if chance alone had ordered their values. Ties count half.
///
/// Source: Mann and Whitney, Annals of Mathematical Statistics 18, 1947.
pub fn mann_whitney(a: &[f64], b: &[f64]) -> f64 {
    let above = |x: &f64| -> usize {
        let twice = |y: &f64| if x > y { 2 } else { usize::from(x == y) };
        b.iter().map(twice).sum()
    };
    let twice_u: usize = a.iter().map(above).sum();
    let ways = orders_by_u(a.len(), b.len());
    let all: f64 = ways.iter().sum();
    let below: f64 = ways.iter().take(twice_u / 2 + 1).sum();
    let above: f64 = ways.iter().skip(twice_u.div_ceil(2)).sum();
    (2.0 * below.min(above) / all).min(1.0)
}

/// Returns, for each U from 0 to `m * n`, how many orders of `m` and `n` different values have it.
fn orders_by_u(m: usize, n: usize) -> Vec<f64> {
    // One row for each number of values of the second kind; the first kind grows with each pass.
    let mut rows = vec![vec![1.0]; n + 1];
    for i in 1..=m {
        rows[0] = vec![1.0];
        for j in 1..=n {
            // The largest value is either of the first kind, and above j others, or of the second kind.
            let mut ways = vec![0.0; i * j + 1];
            for (u, count) in rows[j].iter().enumerate() {
                ways[u + j] += count;
            }
            for (u, count) in rows[j - 1].iter().enumerate() {
                ways[u] += count;
            }
            rows[j] = ways;
        }
    }
    rows.swap_remove(n)
}

/// Returns the rate per rank as a fraction of the rate of one rank alone.
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
    fn p_values_are_those_of_the_exact_test() {
        // 20 orders of three and three; one each way is the most extreme.
        assert_eq!(mann_whitney(&[1.0, 2.0, 3.0], &[4.0, 5.0, 6.0]), 0.1);
        // scipy.stats.mannwhitneyu(method="exact").
        let a = [10.1, 9.8, 10.4, 10.0, 10.3];
        let p = mann_whitney(&a, &[11.0, 10.2, 11.2, 10.9, 11.1]);
        assert!((p - 0.031_746_031_746).abs() < 1e-9, "{p}");
        assert_eq!(mann_whitney(&a, &a), 1.0);
    }

    #[test]
    fn two_ranks_at_twice_the_rate_are_fully_efficient() {
        assert_eq!(efficiency(200.0, 2, 100.0), 1.0);
    }
}
