//! Mixup and CutMix: images and targets that are mixed with those of a partner image.
//!
//! The partner is any image of the training set, augmented as in its own turn of the epoch. Partner, share
//! and rectangle are drawn per image, so that they depend neither on the rest of the batch nor on how ranks
//! share it.
//!
//! Source: Zhang et al., mixup, ICLR 2018; Yun et al., CutMix, ICCV 2019; the rectangle as in
//! torchvision's `CutMix`.

use std::ops::Range;

use job::config::{Augment, Cutmix, Mixup};
use job::rng::{Draws, Purpose, Stream};
use tch::{Kind, Tensor};

use super::beta::beta;
use crate::data::{upload, upload_f32};
use crate::loss::{Mixed, Targets};

/// Mixing of images. With both mixup and CutMix, each image takes one of them with equal probability.
#[derive(Debug, Clone)]
pub struct Mix {
    mixup: Option<Mixup>,
    cutmix: Option<Cutmix>,
    seed: u64,
}

/// The partner of an image, and how it is mixed in.
#[derive(Debug, Clone, PartialEq)]
pub struct Mixing {
    /// Index of the partner.
    pub partner: u32,
    /// Rows and columns in which the partner is visible.
    pub rectangle: [Range<i64>; 2],
    /// Weight of the partner within the rectangle: 0 to 1.
    pub strength: f64,
}

impl Mix {
    /// Returns the mixing that `augment` configures; `None` if there is none.
    pub(super) fn new(augment: &[Augment], seed: u64) -> Option<Self> {
        let mut mix = Self { mixup: None, cutmix: None, seed };
        for change in augment {
            match *change {
                Augment::Mixup(mixup) => mix.mixup = Some(mixup),
                Augment::Cutmix(cutmix) => mix.cutmix = Some(cutmix),
                _ => {}
            }
        }
        (mix.mixup.is_some() || mix.cutmix.is_some()).then_some(mix)
    }

    /// Draws the partner and the mixing of each of these images in `epoch`, for a training set of `len`
    /// images of this height and width.
    pub fn draw(&self, indices: &[u32], epoch: usize, len: usize, size: [i64; 2]) -> Vec<Mixing> {
        let stream = Stream::new(Purpose::Mix, epoch as u64);
        let draw = |&index: &u32| self.draw_one(Draws::new(self.seed, stream, index), len, size);
        indices.iter().map(draw).collect()
    }

    fn draw_one(&self, mut draws: Draws, len: usize, [height, width]: [i64; 2]) -> Mixing {
        // The order of draws determines what a seed gives: do not reorder.
        let partner = draws.below(len as u64) as u32;
        let prefers_cutmix = draws.below(2) == 1;
        let centre = [height, width].map(|size| draws.below(size as u64) as i64);
        match (self.mixup, self.cutmix) {
            (Some(Mixup { alpha }), cutmix) if cutmix.is_none() || !prefers_cutmix => {
                let strength = 1.0 - beta(&mut draws, alpha);
                Mixing { partner, rectangle: [0..height, 0..width], strength }
            }
            (_, cutmix) => {
                let part = 1.0 - beta(&mut draws, cutmix.unwrap_or_default().alpha);
                let rectangle = rectangle(part, centre, [height, width]);
                Mixing { partner, rectangle, strength: 1.0 }
            }
        }
    }
}

/// Returns a rectangle around `centre` with `part` of the area of an image of this size, clipped at the
/// border.
pub fn rectangle(part: f64, centre: [i64; 2], size: [i64; 2]) -> [Range<i64>; 2] {
    [0, 1].map(|side| {
        let half = (0.5 * part.sqrt() * size[side] as f64) as i64;
        (centre[side] - half).max(0)..(centre[side] + half).min(size[side])
    })
}

impl Mixing {
    /// Returns the partner's share of the mixed image.
    fn share(&self, [height, width]: [i64; 2]) -> f64 {
        let [rows, columns] = &self.rectangle;
        let area = (rows.end - rows.start) * (columns.end - columns.start);
        self.strength * area as f64 / (height * width) as f64
    }
}

/// Mixes normalised `[N, C, H, W]` images with their partners.
pub fn mix_images(images: &Tensor, partners: &Tensor, mixings: &[Mixing]) -> Tensor {
    let (_, _, height, width) = super::sizes(images);
    let device = images.device();
    let inside = |side: usize, size: i64| {
        let edge = |of: fn(&Range<i64>) -> i64| {
            let edges: Vec<i64> =
                mixings.iter().map(|mixing| of(&mixing.rectangle[side])).collect();
            upload(&edges, device).unsqueeze(1)
        };
        let position = Tensor::arange(size, (Kind::Int64, device));
        position
            .ge_tensor(&edge(|range| range.start))
            .logical_and(&position.lt_tensor(&edge(|range| range.end)))
    };
    let rows = inside(0, height).unsqueeze(2);
    let rectangles = rows.logical_and(&inside(1, width).unsqueeze(1)).unsqueeze(1);
    let strengths: Vec<f64> = mixings.iter().map(|mixing| mixing.strength).collect();
    let theirs = rectangles * upload_f32(&strengths, device).view([-1, 1, 1, 1]);
    let ours = &theirs * -1.0 + 1.0;
    images * ours + partners * theirs
}

/// Returns the targets of images of `[height, width]` that [`mix_images`] has mixed. `labels`: labels of the
/// images and of their partners, `[N]` i64 each.
pub fn mix_targets(labels: [&Tensor; 2], mixings: &[Mixing], size: [i64; 2]) -> Targets {
    let shares: Vec<f64> = mixings.iter().map(|mixing| mixing.share(size)).collect();
    let shares = upload_f32(&shares, labels[0].device());
    let [own, partner] = labels;
    let is_partner = shares.gt(0.5);
    Targets {
        labels: partner.where_self(&is_partner, own),
        mixed: Some(Mixed {
            labels: own.where_self(&is_partner, partner),
            share: (&shares * -1.0 + 1.0).where_self(&is_partner, &shares),
        }),
        label_smoothing: 0.0,
    }
}
