//! Colour jitter: brightness, contrast, saturation and hue, in a random order.
//!
//! Source: torchvision's `ColorJitter`.

use job::config::ColorJitter;
use job::rng::{Draws, Purpose, Stream};
use tch::Tensor;

use super::{by_choice, color};

/// The random changes of one image.
#[derive(Debug, Clone, Copy)]
struct JitterDraws {
    /// Indices into `amounts`, in the order of application.
    order: [usize; 4],
    /// Factors of brightness, contrast and saturation, and the shift of hues.
    amounts: [f64; 4],
}

impl JitterDraws {
    fn new(jitter: &ColorJitter, mut draws: Draws) -> Self {
        let mut order = [0, 1, 2, 3];
        for last in (1..4).rev() {
            order.swap(last, draws.below(last as u64 + 1) as usize);
        }
        let mut between = |low: f64, high: f64| low + (high - low) * f64::from(draws.unit());
        let mut factor = |by: f64| between((1.0 - by).max(0.0), 1.0 + by);
        let factors = [jitter.brightness, jitter.contrast, jitter.saturation].map(&mut factor);
        let [brightness, contrast, saturation] = factors;
        let hue = between(-jitter.hue, jitter.hue);
        Self { order, amounts: [brightness, contrast, saturation, hue] }
    }
}

/// Changes `[N, C, H, W]` f32 images with whole numbers from 0 to 255.
pub(super) fn apply(
    mut images: Tensor,
    jitter: &ColorJitter,
    seed: u64,
    indices: &[u32],
    epoch: usize,
) -> Tensor {
    let stream = Stream::new(Purpose::ColorJitter, epoch as u64);
    let draws: Vec<_> = indices
        .iter()
        .map(|&index| JitterDraws::new(jitter, Draws::new(seed, stream, index)))
        .collect();
    let ColorJitter { brightness, contrast, saturation, hue } = *jitter;
    let is_on = [brightness, contrast, saturation, hue].map(|most| most > 0.0);
    for turn in 0..4 {
        let choices: Vec<usize> = draws.iter().map(|draws| draws.order[turn]).collect();
        images = by_choice(&images, &choices, |which, part, places| {
            if !is_on[which] {
                return part.shallow_clone();
            }
            let amounts: Vec<f64> =
                places.iter().map(|&place| draws[place].amounts[which]).collect();
            match which {
                0 => color::brightness(part, &amounts),
                1 => color::contrast(part, &amounts),
                2 => color::saturation(part, &amounts),
                _ => color::hue(part, &amounts),
            }
        });
    }
    images
}
