//! The helper by which other tests gather deviations.

mod common;

use common::deviation::larger;

#[test]
fn the_largest_deviation_is_nan_wherever_a_nan_is() {
    for place in 0..3 {
        let mut deviations = [0.5, 2.0, 1.0];
        assert_eq!(deviations.into_iter().fold(0.0, larger), 2.0);
        deviations[place] = f64::NAN;
        assert!(deviations.into_iter().fold(0.0, larger).is_nan(), "{deviations:?}");
    }
}
