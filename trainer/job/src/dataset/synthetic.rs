//! Synthetic images: learnable, of ten classes, 32x32, made in memory.
//!
//! A class is a direction of stripes and a pair of colours. Phase, width, position, contrast, brightness and
//! noise are random, so that no single pixel reveals the class, yet a small convolutional network learns it
//! within some dozens of steps. An image depends on the seed, the split and its index only: a smaller set is
//! the beginning of a larger one.

use std::f32::consts::PI;
use std::sync::LazyLock;
use std::thread;

use super::{DataSet, Dataset, Images, Limits, Normalization};
use crate::rng::{Draws, Purpose, Stream};

const SIDE: usize = 32;
pub(super) const SHAPE: [usize; 3] = [3, SIDE, SIDE];
const IMAGE_BYTES: usize = 3 * SIDE * SIDE;
pub(super) const CLASSES: usize = 10;
const DIRECTIONS: usize = 5;
/// Amplitude of the stripes in red, green and blue, by colour pair.
const COLOURS: [[f32; 3]; 2] = [[1.0, 0.5, -0.6], [-0.6, 0.5, 1.0]];
/// Default numbers of training and of test images.
pub(super) const IMAGES: [usize; 2] = [10_000, 2_000];
/// Largest noise of a pixel, up or down, in units of a byte.
const NOISE: f32 = 28.0;

/// Makes the first images of `seed`; without a limit, 10,000 training and 2,000 test images.
pub(super) fn make(seed: u64, Limits { train, test }: Limits) -> DataSet {
    DataSet {
        name: Dataset::Synthetic,
        classes: (0..CLASSES).map(class_name).collect(),
        train: images(seed, Purpose::SyntheticTrain, train.unwrap_or(IMAGES[0])),
        test: images(seed, Purpose::SyntheticTest, test.unwrap_or(IMAGES[1])),
        normalization: Normalization::new(&[0.5; 3], &[0.12, 0.11, 0.12]),
    }
}

fn class_name(class: usize) -> String {
    let colours = ["orange-blue", "azure-brown"][class / DIRECTIONS];
    format!("{colours} at {} degrees", class % DIRECTIONS * 180 / DIRECTIONS)
}

fn images(seed: u64, split: Purpose, count: usize) -> Images {
    let mut pixels = vec![0; count * IMAGE_BYTES];
    let labels = (0..count).map(|index| (index % CLASSES) as u16).collect();
    let threads = thread::available_parallelism().map_or(1, usize::from).min(8);
    let per_thread = count.div_ceil(threads).max(1);
    thread::scope(|scope| {
        for (part, pixels) in pixels.chunks_mut(per_thread * IMAGE_BYTES).enumerate() {
            scope.spawn(move || {
                for (index, image) in pixels.chunks_exact_mut(IMAGE_BYTES).enumerate() {
                    let index = part * per_thread + index;
                    let draws = Draws::new(seed, Stream::new(split, 0), index as u32);
                    draw(index % CLASSES, draws, image);
                }
            });
        }
    });
    Images { pixels: pixels.into(), labels, shape: SHAPE }
}

/// Draws one image of `class` into `image`, `[32, 32, 3]`.
fn draw(class: usize, mut draws: Draws, image: &mut [u8]) {
    let mut between = |low: f32, high: f32| low + (high - low) * draws.unit();
    let jitter = between(-0.12, 0.12);
    let angle = PI * (class % DIRECTIONS) as f32 / DIRECTIONS as f32 + jitter;
    let cycles = between(3.0, 5.0) / SIDE as f32;
    let phase = between(0.0, 1.0);
    let (dx, dy) = (cycles * angle.cos(), cycles * angle.sin());
    let (centre_x, centre_y) = (between(8.0, 24.0), between(8.0, 24.0));
    let contrast = between(35.0, 80.0);
    let base: [f32; 3] = std::array::from_fn(|_| between(95.0, 160.0));
    let swing = COLOURS[class / DIRECTIONS].map(|colour| colour * contrast);
    let fade_x = fade(centre_x);
    let fade_y = fade(centre_y);

    let mut stripes = [0.0f32; SIDE * SIDE];
    for (y, row) in stripes.chunks_exact_mut(SIDE).enumerate() {
        let start = phase + y as f32 * dy;
        for (x, value) in row.iter_mut().enumerate() {
            *value = sine(start + x as f32 * dx) * fade_x[x] * fade_y[y];
        }
    }
    for channel in 0..3 {
        for (pixels, stripes) in image.chunks_exact_mut(16 * 3).zip(stripes.chunks_exact(16)) {
            let noise = draws.block().map(u32::to_le_bytes);
            let noise = noise.as_flattened();
            for ((pixel, stripe), noise) in pixels.chunks_exact_mut(3).zip(stripes).zip(noise) {
                let noise = (f32::from(*noise) - 127.5) * (NOISE / 127.5);
                pixel[channel] = (base[channel] + swing[channel] * stripe + noise) as u8;
            }
        }
    }
}

/// Returns the stripes' strength along one axis: a bell curve around `centre`.
fn fade(centre: f32) -> [f32; SIDE] {
    std::array::from_fn(|at| (-((at as f32 - centre) / 14.0).powi(2)).exp())
}

/// Returns the sine of `turns` full turns, from a table.
fn sine(turns: f32) -> f32 {
    const STEPS: usize = 512;
    static TABLE: LazyLock<[f32; STEPS]> =
        LazyLock::new(|| std::array::from_fn(|step| (2.0 * PI * step as f32 / STEPS as f32).sin()));
    let step = ((turns + 64.0) * STEPS as f32) as usize;
    TABLE[step % STEPS]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn few(seed: u64, train: usize, test: usize) -> DataSet {
        make(seed, Limits { train: Some(train), test: Some(test) })
    }

    #[test]
    fn the_first_images_of_a_larger_set_are_those_of_a_smaller_one() {
        let small = few(3, 35, 10);
        let large = few(3, 100, 20);
        assert_eq!(small.train.pixels[..], large.train.pixels[..35 * IMAGE_BYTES]);
        assert_eq!(small.test.labels, large.test.labels[..10]);
    }

    #[test]
    fn seeds_and_splits_give_different_images_of_the_same_classes() {
        let one = few(1, 20, 20);
        let two = few(2, 20, 20);
        assert_ne!(one.train.pixels, two.train.pixels);
        assert_ne!(one.train.pixels, one.test.pixels);
        assert_eq!(one.train.labels, two.train.labels);
        assert_eq!(one, few(1, 20, 20));
    }

    #[test]
    fn every_class_is_equally_frequent() {
        let set = make(1, Limits::default());
        assert_eq!((set.train.len(), set.test.len()), (10_000, 2_000));
        for class in 0..10 {
            assert_eq!(set.train.labels.iter().filter(|label| **label == class).count(), 1000);
        }
    }

    #[test]
    fn mean_and_deviation_are_what_the_set_says() {
        let set = few(9, 2000, 1);
        for channel in 0..3 {
            let values: Vec<f64> = set
                .train
                .pixels
                .iter()
                .skip(channel)
                .step_by(3)
                .map(|pixel| f64::from(*pixel) / 255.0)
                .collect();
            let mean = values.iter().sum::<f64>() / values.len() as f64;
            let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>();
            let std = (variance / values.len() as f64).sqrt();
            assert!(
                (mean - f64::from(set.normalization.mean[channel])).abs() < 0.01,
                "{channel}: {mean}"
            );
            assert!(
                (std - f64::from(set.normalization.std[channel])).abs() < 0.01,
                "{channel}: {std}"
            );
        }
    }
}
