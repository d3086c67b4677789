//! Augmentation of training images, as batched tensor operations.
//!
//! The changes of an image depend on the seed, the epoch and its index only, so they are the same on any
//! number of ranks and after a resume. Each operation is applied to the whole batch, or to those of its
//! images that drew the same one, on the device that holds them.

pub mod affine;
mod beta;
pub mod color;
mod crop_flip;
mod cutout;
mod jitter;
mod mix;
mod rand_augment;
pub mod tone;

use job::config::{Augment, ColorJitter, Crop, Cutout, FlipMode};
use job::rng::{self, Draws, Purpose, Stream};
use tch::{Kind, Tensor};

pub use mix::{Mix, Mixing, mix_images, mix_targets, rectangle};
pub use rand_augment::{Operation, RandAugment};

/// The augmentations of a configuration.
#[derive(Debug, Clone)]
pub struct Augmenter {
    seed: u64,
    crop: Option<Crop>,
    flip: Option<FlipMode>,
    rand_augment: Option<RandAugment>,
    color_jitter: Option<ColorJitter>,
    cutout: Option<Cutout>,
    mix: Option<Mix>,
}

impl Augmenter {
    /// Makes an augmenter for `augment`; `None` if that is empty.
    pub fn new(augment: &[Augment], seed: u64) -> Option<Self> {
        let mut augmenter = Self {
            seed,
            crop: None,
            flip: None,
            rand_augment: None,
            color_jitter: None,
            cutout: None,
            mix: Mix::new(augment, seed),
        };
        for change in augment {
            match *change {
                Augment::Crop(crop) => augmenter.crop = Some(crop),
                Augment::Flip(flip) => augmenter.flip = Some(flip.mode),
                Augment::RandAugment(keys) => {
                    augmenter.rand_augment = Some(RandAugment::new(keys, seed));
                }
                Augment::ColorJitter(jitter) => augmenter.color_jitter = Some(jitter),
                Augment::Cutout(cutout) => augmenter.cutout = Some(cutout),
                Augment::Mixup(_) | Augment::Cutmix(_) => {} // in `mix`
            }
        }
        (!augment.is_empty()).then_some(augmenter)
    }

    /// Returns how images are mixed, if they are.
    pub fn mix(&self) -> Option<&Mix> {
        self.mix.as_ref()
    }

    /// Draws the random changes of each of these images in `epoch`.
    pub fn draw<'a>(&'a self, indices: &'a [u32], epoch: usize) -> BatchDraws<'a> {
        let stream = Stream::new(Purpose::Augment, epoch as u64);
        let places = 2 * self.crop.unwrap_or_default().padding as u64 + 1;
        let images = indices.iter().map(|&index| {
            // The order of draws determines what a seed gives: do not reorder.
            let mut draws = Draws::new(self.seed, stream, index);
            let mut below = |n: u64| draws.below(n) as i64;
            ImageDraws {
                row: below(places),
                column: below(places),
                flip: below(2) == 1,
                blank: (draws.unit(), draws.unit()),
            }
        });
        let mut images: Vec<_> = images.collect();
        if self.flip == Some(FlipMode::Alternating) {
            for (image, &index) in images.iter_mut().zip(indices) {
                image.flip = self.flips_first(index) ^ (epoch % 2 == 1);
            }
        }
        BatchDraws { augmenter: self, indices, epoch, images }
    }

    /// Returns whether [`FlipMode::Random`] flips the image in the first epoch.
    fn flips_first(&self, index: u32) -> bool {
        let stream = Stream::new(Purpose::Augment, 0);
        rng::below(rng::bits(self.seed, stream, index, 2), 2) == 1
    }
}

struct ImageDraws {
    /// Row of the padded image at which the crop starts.
    row: i64,
    column: i64,
    flip: bool,
    /// Centre of the cutout square, as fractions of height and width.
    blank: (f32, f32),
}

/// The random changes of each image of a batch.
pub struct BatchDraws<'a> {
    augmenter: &'a Augmenter,
    indices: &'a [u32],
    epoch: usize,
    images: Vec<ImageDraws>,
}

impl BatchDraws<'_> {
    /// Applies crops, flips, RandAugment and colour jitter to `[N, H, W, C]` bytes; the result is bytes or
    /// f32 with whole numbers.
    pub fn change_pixels(&self, pixels: Tensor) -> Tensor {
        let pixels = self.move_pixels(pixels);
        let Augmenter { seed, rand_augment, color_jitter, .. } = self.augmenter;
        if rand_augment.is_none() && color_jitter.is_none() {
            return pixels;
        }
        let mut images = pixels.to_kind(Kind::Float).permute([0, 3, 1, 2]);
        if let Some(rand_augment) = rand_augment {
            images = rand_augment.apply(images, self.indices, self.epoch);
        }
        if let Some(color_jitter) = color_jitter {
            images = jitter::apply(images, color_jitter, *seed, self.indices, self.epoch);
        }
        images.permute([0, 2, 3, 1])
    }

    /// Crops and flips `[N, H, W, C]` bytes.
    fn move_pixels(&self, pixels: Tensor) -> Tensor {
        let Augmenter { crop, flip, .. } = *self.augmenter;
        if crop.is_none() && flip.is_none() {
            return pixels;
        }
        let starts = self.images.iter().map(|image| crop_flip::Source {
            start: crop.map(|_| (image.row, image.column)),
            mirrored: flip.is_some() && image.flip,
        });
        crop_flip::apply(&pixels, crop, starts)
    }

    /// Applies cutout to normalised `[N, C, H, W]` images: sets a square to the mean colour.
    pub fn blank(&self, images: Tensor) -> Tensor {
        match self.augmenter.cutout {
            Some(Cutout { size }) => {
                let centres: Vec<_> = self.images.iter().map(|image| image.blank).collect();
                cutout::apply(&images, size as i64, &centres)
            }
            None => images,
        }
    }
}

fn sizes(tensor: &Tensor) -> (i64, i64, i64, i64) {
    let size = tensor.size();
    (size[0], size[1], size[2], size[3])
}

/// Calls `change` once per distinct choice, with the images that drew it and their positions in the batch.
/// `choices`: the choice of each of the `[N, C, H, W]` images.
fn by_choice<C: Copy + PartialEq>(
    images: &Tensor,
    choices: &[C],
    change: impl Fn(C, &Tensor, &[usize]) -> Tensor,
) -> Tensor {
    let mut changed = images.copy();
    for (first, &choice) in choices.iter().enumerate() {
        if choices[..first].contains(&choice) {
            continue;
        }
        let places: Vec<usize> = (0..choices.len()).filter(|&i| choices[i] == choice).collect();
        let wide: Vec<i64> = places.iter().map(|&place| place as i64).collect();
        let index = super::upload(&wide, images.device());
        let part = change(choice, &images.index_select(0, &index), &places);
        let _ = changed.index_copy_(0, &index, &part);
    }
    changed
}

#[cfg(test)]
mod tests;
