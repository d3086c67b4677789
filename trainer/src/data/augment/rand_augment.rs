//! RandAugment: random operations from a list, all of the same strength.
//!
//! Source: Cubuk et al., RandAugment, 2020; the list and the strengths are those of torchvision's
//! `RandAugment` with its 31 bins.

use job::config;
use job::rng::{Draws, Purpose, Stream};
use tch::{Device, Kind, Tensor};

use super::affine::{self, Affine};
use super::{by_choice, color, sizes, tone};

/// An operation of RandAugment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // the names are torchvision's
pub enum Operation {
    Identity,
    ShearX,
    ShearY,
    TranslateX,
    TranslateY,
    Rotate,
    Brightness,
    Color,
    Contrast,
    Sharpness,
    Posterize,
    Solarize,
    AutoContrast,
    Equalize,
}

/// Random operations from a list, all of the same strength.
#[derive(Debug, Clone)]
pub struct RandAugment {
    keys: config::RandAugment,
    seed: u64,
}

impl RandAugment {
    pub(super) fn new(keys: config::RandAugment, seed: u64) -> Self {
        Self { keys, seed }
    }

    /// Changes `[N, C, H, W]` f32 images with whole numbers from 0 to 255.
    pub(super) fn apply(&self, mut images: Tensor, indices: &[u32], epoch: usize) -> Tensor {
        let stream = Stream::new(Purpose::RandAugment, epoch as u64);
        let mut draws: Vec<_> =
            indices.iter().map(|&index| Draws::new(self.seed, stream, index)).collect();
        for _ in 0..self.keys.num_ops {
            let drawn = draws.iter_mut().map(|draws| {
                let operation = Operation::ALL[draws.below(Operation::ALL.len() as u64) as usize];
                (operation, if draws.below(2) == 1 { -1.0 } else { 1.0 })
            });
            let (operations, signs): (Vec<_>, Vec<f64>) = drawn.unzip();
            images = by_choice(&images, &operations, |operation, part, places| {
                let signs: Vec<f64> = places.iter().map(|&place| signs[place]).collect();
                operation.apply(part, self.keys.magnitude, &signs)
            });
        }
        images
    }
}

impl Operation {
    /// All operations, in torchvision's order.
    pub const ALL: [Self; 14] = [
        Self::Identity,
        Self::ShearX,
        Self::ShearY,
        Self::TranslateX,
        Self::TranslateY,
        Self::Rotate,
        Self::Brightness,
        Self::Color,
        Self::Contrast,
        Self::Sharpness,
        Self::Posterize,
        Self::Solarize,
        Self::AutoContrast,
        Self::Equalize,
    ];

    /// Applies the operation to `[N, C, H, W]` f32 images with whole numbers from 0 to 255. `magnitude`: 0 to
    /// 30; `signs`: `[N]` of 1 and -1, the direction of operations that have two.
    pub fn apply(self, images: &Tensor, magnitude: usize, signs: &[f64]) -> Tensor {
        let (_, _, height, width) = sizes(images);
        let bin = |first: f64, last: f64| {
            let bins = Tensor::linspace(first, last, BINS, (Kind::Float, Device::Cpu));
            bins.double_value(&[magnitude as i64])
        };
        let signed = |most: f64| signs.iter().map(move |sign| sign * bin(0.0, most));
        let factors = || signed(0.9).map(|amount| 1.0 + amount).collect::<Vec<_>>();
        let moved = |maps: &mut dyn Iterator<Item = Affine>| {
            affine::transform(images, &maps.collect::<Vec<_>>())
        };
        let shift = |size: i64| signed(150.0 / 331.0 * size as f64).map(|by| by.trunc() as i64);
        match self {
            Self::Identity => images.shallow_clone(),
            Self::ShearX => moved(&mut signed(0.3).map(|s| Affine::shear_x(s, (width, height)))),
            Self::ShearY => moved(&mut signed(0.3).map(|s| Affine::shear_y(s, (width, height)))),
            Self::TranslateX => moved(&mut shift(width).map(|by| Affine::translate(by, 0))),
            Self::TranslateY => moved(&mut shift(height).map(|by| Affine::translate(0, by))),
            Self::Rotate => moved(&mut signed(30.0).map(Affine::rotate)),
            Self::Brightness => color::brightness(images, &factors()),
            Self::Color => color::saturation(images, &factors()),
            Self::Contrast => color::contrast(images, &factors()),
            Self::Sharpness => tone::sharpness(images, &factors()),
            Self::Posterize => {
                let lost = (magnitude as f64 / ((BINS - 1) as f64 / 4.0)).round();
                tone::posterize(images, 8 - lost as i32)
            }
            Self::Solarize => tone::solarize(images, bin(255.0, 0.0)),
            Self::AutoContrast => tone::autocontrast(images),
            Self::Equalize => tone::equalize(images),
        }
    }
}

/// Number of strengths.
const BINS: i64 = 31;
