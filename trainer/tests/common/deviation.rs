//! How far numbers are from what they should be.

/// The larger of two deviations; NaN if one of them is, which `f64::max` would leave out, so that a test of
/// the largest would pass.
pub fn larger(one: f64, other: f64) -> f64 {
    if one.is_nan() || one > other { one } else { other }
}
