//! Random changes to training images, as batched tensor operations.
//!
//! What happens to an image depends on the seed, the epoch and its index only, so it is the same on
//! any number of ranks and after a resume.

use job::config::Augment;
use job::rng::{Draws, Purpose, Stream};
use tch::{Kind, Tensor};

/// Pixels of zero around an image before a crop.
const PADDING: i64 = 4;
/// The side of the square that cutout blanks.
const CUTOUT: i64 = 16;

/// The random changes of a configuration.
#[derive(Debug, Clone)]
pub struct Augmenter {
    seed: u64,
    crop: bool,
    flip: bool,
    cutout: bool,
}

impl Augmenter {
    /// Those named in `augment`; `None` when there are none.
    pub fn new(augment: &[Augment], seed: u64) -> Option<Self> {
        let has = |wanted| augment.contains(&wanted);
        (!augment.is_empty()).then(|| Self {
            seed,
            crop: has(Augment::Crop),
            flip: has(Augment::Flip),
            cutout: has(Augment::Cutout),
        })
    }

    /// What happens to each of these images in `epoch`.
    pub fn draw(&self, indices: &[u32], epoch: usize) -> BatchDraws<'_> {
        let stream = Stream::new(Purpose::Augment, epoch as u64);
        let images = indices.iter().map(|&index| {
            // The order of draws is part of what a seed means: do not reorder.
            let mut draws = Draws::new(self.seed, stream, index);
            let mut below = |n: i64| draws.below(n as u64) as i64;
            ImageDraws {
                row: below(2 * PADDING + 1),
                column: below(2 * PADDING + 1),
                flip: below(2) == 1,
                blank: (draws.unit(), draws.unit()),
            }
        });
        BatchDraws { augmenter: self, images: images.collect() }
    }
}

struct ImageDraws {
    /// Where the crop starts in the padded image.
    row: i64,
    column: i64,
    flip: bool,
    /// The centre of the blank square, as fractions of height and width.
    blank: (f32, f32),
}

/// What happens to each image of a batch.
pub struct BatchDraws<'a> {
    augmenter: &'a Augmenter,
    images: Vec<ImageDraws>,
}

impl BatchDraws<'_> {
    /// Crops and mirrors `[N, H, W, C]` bytes, in one gather.
    pub fn move_pixels(&self, pixels: Tensor) -> Tensor {
        let Augmenter { crop, flip, .. } = *self.augmenter;
        if !crop && !flip {
            return pixels;
        }
        let (count, height, width, channels) = sizes(&pixels);
        let padding = if crop { PADDING } else { 0 };
        let padded = pixels.constant_pad_nd([0, 0, padding, padding, padding, padding]);
        let padded_width = width + 2 * padding;

        let mut sources = Vec::with_capacity((count * height * width) as usize);
        for image in &self.images {
            let (top, left) = if crop { (image.row, image.column) } else { (0, 0) };
            let mirrored = flip && image.flip;
            for row in top..top + height {
                let start = row * padded_width + left;
                let columns = (0..width)
                    .map(|column| start + if mirrored { width - 1 - column } else { column });
                sources.extend(columns);
            }
        }
        let sources = super::upload(&sources, pixels.device())
            .view([count, height * width, 1])
            .expand([count, height * width, channels], false);
        padded
            .view([count, -1, channels])
            .gather(1, &sources, false)
            .view([count, height, width, channels])
    }

    /// Blanks a square of normalised `[N, C, H, W]` images, with the mean colour.
    pub fn blank(&self, images: Tensor) -> Tensor {
        if !self.augmenter.cutout {
            return images;
        }
        let (_, _, height, width) = sizes(&images);
        let device = images.device();
        let outside = |size: i64, fraction: fn(&ImageDraws) -> f32| {
            let centre = |image| (fraction(image) * size as f32) as i64;
            let centres: Vec<i64> = self.images.iter().map(centre).collect();
            let start = super::upload(&centres, device).unsqueeze(1) - CUTOUT / 2;
            let position = Tensor::arange(size, (Kind::Int64, device)) - start;
            position.lt(0).logical_or(&position.ge(CUTOUT))
        };
        let rows = outside(height, |image| image.blank.0).unsqueeze(2);
        let columns = outside(width, |image| image.blank.1).unsqueeze(1);
        images * rows.logical_or(&columns).unsqueeze(1)
    }
}

fn sizes(tensor: &Tensor) -> (i64, i64, i64, i64) {
    let size = tensor.size();
    (size[0], size[1], size[2], size[3])
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    /// Bytes of a batch of one image, `[1, H, W, C]`, whose pixels all differ.
    fn ramp() -> Tensor {
        Tensor::arange(8 * 8 * 3, (Kind::Uint8, Device::Cpu)).view([1, 8, 8, 3])
    }

    fn draws(augmenter: &Augmenter, row: i64, column: i64, flip: bool) -> BatchDraws<'_> {
        BatchDraws { augmenter, images: vec![ImageDraws { row, column, flip, blank: (0.5, 0.0) }] }
    }

    #[test]
    fn a_centred_crop_changes_nothing_and_another_shifts() {
        let augmenter = Augmenter::new(&[Augment::Crop], 0).unwrap();
        let same = draws(&augmenter, PADDING, PADDING, true).move_pixels(ramp());
        assert_eq!(same, ramp());
        let down = draws(&augmenter, PADDING + 1, PADDING, false).move_pixels(ramp());
        assert_eq!(down.narrow(1, 0, 7), ramp().narrow(1, 1, 7));
        assert_eq!(down.narrow(1, 7, 1).sum(Kind::Int64).int64_value(&[]), 0);
    }

    #[test]
    fn a_flip_mirrors_columns_of_those_that_drew_it() {
        let augmenter = Augmenter::new(&[Augment::Flip], 0).unwrap();
        let flipped = draws(&augmenter, 0, 0, true).move_pixels(ramp());
        assert_eq!(flipped, ramp().flip([2]));
        assert_eq!(draws(&augmenter, 0, 0, false).move_pixels(ramp()), ramp());
    }

    #[test]
    fn cutout_blanks_a_square_clipped_at_the_border() {
        let augmenter = Augmenter::new(&[Augment::Cutout], 0).unwrap();
        let images = Tensor::ones([1, 3, 32, 32], (Kind::Float, Device::Cpu));
        let blanked = draws(&augmenter, 0, 0, false).blank(images);
        // The centre is (16, 0): rows 8 to 23 and columns 0 to 7.
        let square = blanked.narrow(2, 8, 16).narrow(3, 0, 8);
        assert_eq!(square.sum(Kind::Float).double_value(&[]), 0.0);
        let left = blanked.sum(Kind::Float).double_value(&[]);
        assert_eq!(left, f64::from(3 * (32 * 32 - 16 * 8)));
    }

    #[test]
    fn what_happens_to_an_image_does_not_depend_on_its_batch() {
        let all = [Augment::Crop, Augment::Flip, Augment::Cutout];
        let augmenter = Augmenter::new(&all, 3).unwrap();
        let pixels = Tensor::randint(256, [2, 32, 32, 3], (Kind::Uint8, Device::Cpu));
        let together = augmenter.draw(&[5, 9], 2).move_pixels(pixels.shallow_clone());
        let alone = augmenter.draw(&[9], 2).move_pixels(pixels.narrow(0, 1, 1));
        assert_eq!(together.narrow(0, 1, 1), alone);
        let next_epoch = augmenter.draw(&[9], 3).move_pixels(pixels.narrow(0, 1, 1));
        assert_ne!(alone, next_epoch);
    }
}
