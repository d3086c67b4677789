//! Shears, translations and rotations of images, as torchvision does them: with the nearest pixel, and 0
//! beyond the border.
//!
//! Source: torchvision 0.26, `transforms/functional.py` and `transforms/_functional_tensor.py`.

use tch::{Kind, Tensor};

use super::sizes;
use crate::data::upload_f32;

/// An affine map from pixel positions of the result to those of the source image, relative to the centre: the
/// rows of a 2x3 matrix.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Affine([f64; 6]);

impl Affine {
    /// Rotates counterclockwise.
    pub fn rotate(degrees: f64) -> Self {
        Self::inverse((0.0, 0.0), -degrees.to_radians(), (0.0, 0.0), (0.0, 0.0))
    }

    /// Shifts to the right and down, by whole pixels.
    pub fn translate(columns: i64, rows: i64) -> Self {
        Self::inverse((0.0, 0.0), 0.0, (columns as f64, rows as f64), (0.0, 0.0))
    }

    /// Shears horizontally, for images of this width and height: moves each row by `slope` times its distance
    /// from the top.
    pub fn shear_x(slope: f64, size: (i64, i64)) -> Self {
        Self::inverse(top_left(size), 0.0, (0.0, 0.0), (slope.atan(), 0.0))
    }

    /// Shears vertically: moves each column by `slope` times its distance from the left.
    pub fn shear_y(slope: f64, size: (i64, i64)) -> Self {
        Self::inverse(top_left(size), 0.0, (0.0, 0.0), (0.0, slope.atan()))
    }

    /// Returns the inverse of a rotation and shears (in radians) around `centre`, and a translation (in
    /// pixels).
    fn inverse(
        centre: (f64, f64),
        rotation: f64,
        translation: (f64, f64),
        shear: (f64, f64),
    ) -> Self {
        let (sx, sy) = shear;
        // To degrees and back, as torchvision passes angles, for the same rounding.
        let [rotation, sx, sy] = [rotation, sx, sy].map(|angle| angle.to_degrees().to_radians());
        let a = (rotation - sy).cos() / sy.cos();
        let b = -(rotation - sy).cos() * sx.tan() / sy.cos() - rotation.sin();
        let c = (rotation - sy).sin() / sy.cos();
        let d = -(rotation - sy).sin() * sx.tan() / sy.cos() + rotation.cos();
        let (x, y) = (-centre.0 - translation.0, -centre.1 - translation.1);
        Self([d, -b, d * x - b * y + centre.0, -c, a, -c * x + a * y + centre.1])
    }
}

fn top_left((width, height): (i64, i64)) -> (f64, f64) {
    (-0.5 * width as f64, -0.5 * height as f64)
}

/// Transforms `[N, C, H, W]` f32 images, each by its own map.
pub fn transform(images: &Tensor, maps: &[Affine]) -> Tensor {
    let (count, _, height, width) = sizes(images);
    let device = images.device();
    let options = (Kind::Float, device);
    let centred = |size: i64| {
        let last = size as f64 * 0.5 - 0.5;
        Tensor::linspace(-last, last, size, options)
    };
    let (x, y) = (centred(width), centred(height).unsqueeze(1));

    let elements: Vec<f64> = maps.iter().flat_map(|map| map.0).collect();
    let half = upload_f32(&[0.5 * width as f64, 0.5 * height as f64], device);
    let maps = upload_f32(&elements, device).view([count, 2, 3]).transpose(1, 2) / half;
    // Products and sums instead of a matrix product, which a GPU may round to TF32.
    let [of_x, of_y, shift] = [0, 1, 2].map(|row| maps.select(1, row).view([count, 1, 1, 2]));
    let places = x.unsqueeze(-1) * of_x + y.unsqueeze(-1) * of_y + shift;
    const NEAREST: i64 = 1;
    const ZEROS: i64 = 0;
    images.grid_sampler(&places, NEAREST, ZEROS, false)
}
