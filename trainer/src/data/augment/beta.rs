//! Random numbers of a symmetric beta distribution.

use job::rng::Draws;

/// Draws a number from Beta(alpha, alpha), in 0 to 1.
pub(super) fn beta(draws: &mut Draws, alpha: f64) -> f64 {
    // In logarithms: for a small alpha, both gamma variates may underflow.
    let (one, other) = (ln_gamma(draws, alpha), ln_gamma(draws, alpha));
    1.0 / (1.0 + (other - one).exp())
}

/// Draws the logarithm of a number from Gamma(alpha, 1).
///
/// Source: Marsaglia and Tsang, A Simple Method for Generating Gamma Variables, 2000; for alpha below 1, its
/// section 6.
fn ln_gamma(draws: &mut Draws, alpha: f64) -> f64 {
    if alpha < 1.0 {
        let uniform = open_unit(draws);
        return ln_gamma(draws, alpha + 1.0) + uniform.ln() / alpha;
    }
    let d = alpha - 1.0 / 3.0;
    let c = 1.0 / (9.0 * d).sqrt();
    loop {
        let x = normal(draws);
        let v = (1.0 + c * x).powi(3);
        let uniform = open_unit(draws);
        if v > 0.0 && uniform.ln() < 0.5 * x * x + d - d * v + d * v.ln() {
            return (d * v).ln();
        }
    }
}

/// Draws a standard normal number.
///
/// Source: Box and Muller, A Note on the Generation of Random Normal Deviates, 1958.
fn normal(draws: &mut Draws) -> f64 {
    let radius = (-2.0 * open_unit(draws).ln()).sqrt();
    radius * (std::f64::consts::TAU * open_unit(draws)).cos()
}

/// Draws a number above 0 and below 1: the centre of one of 2^53 equal intervals.
fn open_unit(draws: &mut Draws) -> f64 {
    ((draws.bits() >> 11) as f64 + 0.5) / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use job::rng::{Purpose, Stream};

    /// Quantiles of Beta(alpha, alpha) at 0.1, 0.25 and 0.5, from the inverse of the regularized incomplete
    /// beta function.
    const QUANTILES: [(f64, [f64; 3]); 3] = [
        (0.2, [0.00024776469190814675, 0.023814718768253702, 0.5]),
        (1.0, [0.1, 0.25, 0.5]),
        (4.0, [0.27860204858171306, 0.37884844064170736, 0.5]),
    ];

    #[test]
    fn draws_have_the_quantiles_of_the_distribution() {
        for (alpha, quantiles) in QUANTILES {
            let count = 20_000;
            let draw =
                |sample| beta(&mut Draws::new(5, Stream::new(Purpose::Mix, 0), sample), alpha);
            let mut drawn: Vec<f64> = (0..count).map(draw).collect();
            drawn.sort_by(f64::total_cmp);
            for (fraction, expected) in [0.1, 0.25, 0.5].into_iter().zip(quantiles) {
                let below = drawn.partition_point(|value| *value <= expected) as f64;
                // Six standard deviations of the count.
                let off = (below / f64::from(count) - fraction).abs();
                let most = 6.0 * (fraction * (1.0 - fraction) / f64::from(count)).sqrt();
                assert!(off < most, "Beta({alpha}, {alpha}) at {fraction}: off by {off}");
            }
        }
    }
}
