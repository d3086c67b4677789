//! Deviations of numbers from what they should be.

/// Returns the larger of two deviations; NaN if one of them is. `f64::max` would ignore the NaN, so that a
/// test of the largest deviation would pass.
pub fn larger(one: f64, other: f64) -> f64 {
    if one.is_nan() || one > other { one } else { other }
}
