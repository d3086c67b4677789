//! Live taps: the taps of a kernel that ever touch its input.
//!
//! A 3x3 kernel with padding 1 on a 1x1 map only ever multiplies its centre with a pixel; the other eight
//! taps see padding, so their gradient is always zero. Which taps are live follows from the sizes alone.

use std::ops::Range;

/// The live part of a kernel: a range in each dimension.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taps {
    /// Range of live rows.
    pub rows: Range<usize>,
    /// Range of live columns.
    pub columns: Range<usize>,
}

impl Taps {
    /// Returns the live taps of a square kernel on a map of `[height, width]`; `None` if all are live.
    pub fn of(map: [usize; 2], kernel: usize, stride: usize, padding: usize) -> Option<Self> {
        let [rows, columns] = map.map(|size| live_range(size, kernel, stride, padding));
        // Rows and columns must lose as many taps at the start, so that one padding serves both dimensions.
        let one_padding = rows.start == columns.start;
        let some_dead = rows != (0..kernel) || columns != (0..kernel);
        (one_padding && some_dead).then_some(Self { rows, columns })
    }
}

/// Returns the taps that touch an input of `size` in one dimension; all taps if the live ones alone could not
/// be applied with the same padding on both sides.
fn live_range(size: usize, kernel: usize, stride: usize, padding: usize) -> Range<usize> {
    let outputs = output_size(size, kernel, stride, padding);
    let touches = |tap: usize| {
        (0..outputs).any(|output| (padding..padding + size).contains(&(output * stride + tap)))
    };
    let (Some(first), Some(last)) =
        ((0..kernel).find(|tap| touches(*tap)), (0..kernel).rfind(|tap| touches(*tap)))
    else {
        return 0..kernel;
    };
    let live = first..last + 1;
    let same =
        first <= padding && output_size(size, live.len(), stride, padding - first) == outputs;
    if same { live } else { 0..kernel }
}

/// Returns the output size of a convolution or pool in one dimension.
pub const fn output_size(size: usize, kernel: usize, stride: usize, padding: usize) -> usize {
    (size + 2 * padding - kernel) / stride + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_maps_leave_the_taps_that_padding_hides() {
        assert_eq!(live_range(1, 3, 1, 1), 1..2);
        assert_eq!(live_range(2, 3, 2, 1), 1..3);
        assert_eq!(live_range(2, 3, 1, 1), 0..3);
        assert_eq!(live_range(4, 3, 2, 1), 0..3);
        assert_eq!(live_range(1, 7, 2, 3), 3..4);
        assert_eq!(live_range(8, 1, 2, 0), 0..1);
    }

    /// Convolves in one dimension, by the definition.
    fn convolve(input: &[f64], kernel: &[f64], stride: usize, padding: usize) -> Vec<f64> {
        let outputs = output_size(input.len(), kernel.len(), stride, padding);
        let output = |position: usize| {
            let taps = kernel.iter().enumerate().map(|(tap, weight)| {
                let index = (position * stride + tap).checked_sub(padding);
                weight * index.and_then(|index| input.get(index)).unwrap_or(&0.0)
            });
            taps.sum()
        };
        (0..outputs).map(output).collect()
    }

    #[test]
    fn the_live_part_alone_gives_the_same_result() {
        let mut with_dead_taps = 0;
        for (size, kernel, stride) in [1, 2, 3, 4, 5, 8]
            .into_iter()
            .flat_map(|size| [1, 3, 5, 7].map(|kernel| (size, kernel)))
            .flat_map(|(size, kernel)| [1, 2, 3].map(|stride| (size, kernel, stride)))
        {
            let padding = kernel / 2;
            let input: Vec<f64> = (0..size).map(|index| 1.0 + index as f64).collect();
            let weights: Vec<f64> = (0..kernel).map(|tap| 10f64.powi(tap as i32)).collect();
            let live = live_range(size, kernel, stride, padding);
            with_dead_taps += usize::from(live.len() < kernel);
            assert_eq!(
                convolve(&input, &weights, stride, padding),
                convolve(&input, &weights[live.clone()], stride, padding - live.start),
                "size {size}, kernel {kernel}, stride {stride}: {live:?}"
            );
        }
        assert!(with_dead_taps > 10, "{with_dead_taps}");
    }
}
