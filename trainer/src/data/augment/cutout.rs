//! Cutout: blanked squares.
//!
//! Source: DeVries and Taylor, Improved Regularization of Convolutional Neural Networks with Cutout,
//! 2017.

use tch::{Kind, Tensor};

use super::sizes;

/// Sets a square of side `size` around a pixel of each normalised `[N, C, H, W]` image to 0, the mean colour.
/// `centres`: centre of the square as fractions of height and width.
pub(super) fn apply(images: &Tensor, size: i64, centres: &[(f32, f32)]) -> Tensor {
    let (_, _, height, width) = sizes(images);
    let device = images.device();
    let outside = |length: i64, fraction: fn(&(f32, f32)) -> f32| {
        let centre = |image| (fraction(image) * length as f32) as i64;
        let centres: Vec<i64> = centres.iter().map(centre).collect();
        let start = crate::data::upload(&centres, device).unsqueeze(1) - size / 2;
        let position = Tensor::arange(length, (Kind::Int64, device)) - start;
        position.lt(0).logical_or(&position.ge(size))
    };
    let rows = outside(height, |centre| centre.0).unsqueeze(2);
    let columns = outside(width, |centre| centre.1).unsqueeze(1);
    images * rows.logical_or(&columns).unsqueeze(1)
}
