//! Whitening filters, which make the outputs of a network's first convolution uncorrelated.
//!
//! Source: Keller Jordan, 94% on CIFAR-10 in 3.29 Seconds on a Single GPU, 2024, section 3.2.

use job::network::Init;
use tch::{Device, Kind, Tensor};

use crate::data::Images;
use crate::flat::Flat;

/// Largest number of training images from which patches are taken.
const IMAGES: usize = 5000;
/// Number of images whose patches are in memory at once.
const CHUNK: usize = 250;
/// Added to each eigenvalue, the variance of a direction, so that directions of little variance are not
/// amplified excessively.
const EPS: f64 = 5e-4;

/// Fills every weight of `flat` with [`Init::Whitening`] with filters computed from the first images of
/// `train`, or from evenly spread ones if the images are `sorted` by class.
pub fn whiten(flat: &mut Flat, train: &Images, sorted: bool) {
    let wanted = flat.specs().filter(|spec| spec.init == Init::Whitening);
    let wanted: Vec<_> = wanted.map(|spec| (spec.name.clone(), spec.shape[2])).collect();
    for (name, kernel) in wanted {
        let moments = patch_moments(train, &some_of(train.len(), sorted), kernel as i64);
        let filters = filters(&moments, kernel as i64);
        tch::no_grad(|| flat.tensor(&name).copy_(&filters));
    }
}

/// Returns the indices of at most [`IMAGES`] of `all` images: the first ones, or evenly spread ones.
fn some_of(all: usize, spread: bool) -> Vec<u32> {
    let count = all.min(IMAGES);
    (0..count).map(|index| if spread { index * all / count } else { index } as u32).collect()
}

/// Returns the second moments of all patches of `kernel` x `kernel` pixels of normalised images:
/// `[C kernel kernel, C kernel kernel]` f64.
fn patch_moments(train: &Images, indices: &[u32], kernel: i64) -> Tensor {
    let (mut moments, mut count) = (Tensor::from(0.0), 0);
    for chunk in indices.chunks(CHUNK) {
        let images = train.batch(chunk).images.to_device(Device::Cpu).to_kind(Kind::Double);
        // [N, C kernel kernel, places]
        let patches = images.im2col([kernel; 2], [1, 1], [0, 0], [1, 1]);
        let patches = patches.transpose(0, 1).flatten(1, -1);
        count += patches.size()[1];
        moments = &moments + patches.mm(&patches.tr());
    }
    moments / count as f64
}

/// Returns filters `[2 C kernel kernel, C, kernel, kernel]` from second moments: the eigenvectors, by
/// decreasing eigenvalue, each divided by the square root of its eigenvalue plus [`EPS`]; then their
/// negatives.
fn filters(moments: &Tensor, kernel: i64) -> Tensor {
    let (eigenvalues, eigenvectors) = moments.linalg_eigh("U");
    let deviations: Tensor = (eigenvalues + EPS).sqrt();
    let directions = (eigenvectors / deviations).tr().flip([0]);
    let filters = Tensor::cat(&[&directions, &(-&directions)], 0);
    filters.view([filters.size()[0], -1, kernel, kernel])
}

#[cfg(test)]
mod tests {
    use job::dataset::Normalization;

    use super::*;

    #[test]
    fn images_sorted_by_class_are_taken_from_all_over() {
        assert_eq!(some_of(50_000, true)[..3], [0, 10, 20]);
        assert_eq!(some_of(50_000, true).last(), Some(&49_990));
        assert_eq!(some_of(50_000, false).last(), Some(&4_999));
        assert_eq!(some_of(3, true), [0, 1, 2]);
    }

    #[test]
    fn what_filters_make_of_patches_is_uncorrelated_with_variance_one() {
        let mut state = 1u32;
        // Neighbouring values are similar, as in photographs.
        let mut last = 0u8;
        let pixels = (0..64 * 16 * 16 * 3).map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            last = last / 2 + (state >> 25) as u8;
            last
        });
        let split = job::dataset::Images {
            pixels: pixels.collect::<Vec<u8>>().into(),
            labels: vec![0; 64],
            shape: [3, 16, 16],
        };
        let normalization = Normalization { mean: vec![0.4, 0.5, 0.6], std: vec![0.2, 0.25, 0.3] };
        let images = Images::new(&split, &normalization, Device::Cpu);
        let filters =
            filters(&patch_moments(&images, &some_of(64, false), 2), 2).to_kind(Kind::Float);
        assert_eq!(filters.size(), [24, 3, 2, 2]);
        assert_eq!(filters.narrow(0, 12, 12), -filters.narrow(0, 0, 12));

        let all: Vec<u32> = (0..64).collect();
        let white = images.batch(&all).images.conv2d(
            &filters.narrow(0, 0, 12),
            None::<&Tensor>,
            1,
            0,
            1,
            1,
        );
        let white = white.transpose(0, 1).flatten(1, -1);
        let moments = white.mm(&white.tr()) / white.size()[1] as f64;
        let off = moments - Tensor::eye(12, (Kind::Float, Device::Cpu));
        assert!(off.abs().max().double_value(&[]) < 0.02, "{off}");
    }
}
