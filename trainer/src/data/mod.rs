//! Batches of images, gathered, augmented and normalised on the device that holds the images.

pub mod augment;

use std::panic::panic_any;

use job::dataset::Normalization;
use tch::{Device, Kind, Tensor};

pub use augment::Augmenter;

use crate::loss::Targets;

/// One split of a data set, as bytes on the device.
///
/// Pixels are channels-last, so that a gathered batch needs no reordering.
pub struct Images {
    /// Pixels, `[len, H, W, C]` u8.
    pixels: Tensor,
    /// Labels, `[len]` i64.
    labels: Tensor,
    /// Mean, `[C]` f32, in units of a byte.
    mean: Tensor,
    /// Standard deviation, `[C]` f32, in units of a byte.
    std: Tensor,
}

/// Images that go through the network together, with their targets.
pub struct Batch {
    /// Normalised images, `[N, C, H, W]` f32, in channels-last order.
    pub images: Tensor,
    /// Targets of the images.
    pub targets: Targets,
}

impl Batch {
    /// Returns the number of images.
    pub fn len(&self) -> usize {
        self.targets.len()
    }

    /// Returns whether there are no images.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns a copy with tensors of its own.
    pub fn copy(&self) -> Self {
        Self { images: self.images.copy(), targets: self.targets.copy() }
    }

    /// Copies images and targets of a batch of the same kind and size into this one, in place.
    pub fn copy_from(&mut self, other: &Self) {
        self.images.copy_(&other.images);
        self.targets.copy_from(&other.targets);
    }

    /// Sets label smoothing, see [`Targets::label_smoothing`].
    pub fn smoothed(mut self, label_smoothing: f64) -> Self {
        self.targets.label_smoothing = label_smoothing;
        self
    }
}

impl Images {
    /// Copies one split of a data set to the device.
    pub fn new(
        split: &job::dataset::Images,
        normalization: &Normalization,
        device: Device,
    ) -> Self {
        let [channels, height, width] = split.shape.map(|size| size as i64);
        let in_bytes = |values: &[f32]| Tensor::from_slice(values).to_device(device) * 255.0;
        let labels: Vec<i64> = split.labels.iter().map(|&label| i64::from(label)).collect();
        Self {
            pixels: Tensor::from_slice(&split.pixels)
                .view([-1, height, width, channels])
                .to_device(device),
            labels: Tensor::from_slice(&labels).to_device(device),
            mean: in_bytes(&normalization.mean),
            std: in_bytes(&normalization.std),
        }
    }

    /// Returns the number of images in the split.
    pub fn len(&self) -> usize {
        self.labels.numel()
    }

    /// Returns whether there are no images.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the number of pixels of an image.
    pub fn area(&self) -> usize {
        (self.pixels.size()[1] * self.pixels.size()[2]) as usize
    }

    /// Returns the images of these indices, normalised but not augmented.
    pub fn batch(&self, indices: &[u32]) -> Batch {
        let index = self.index(indices);
        Batch {
            images: self.normalize(&self.pixels.index_select(0, &index)),
            targets: Targets::certain(self.labels.index_select(0, &index)),
        }
    }

    /// Returns the images of these indices, augmented by `augmenter` for `epoch` and normalised.
    pub fn augmented_batch(&self, indices: &[u32], augmenter: &Augmenter, epoch: usize) -> Batch {
        if indices.is_empty() {
            return self.batch(indices);
        }
        let Some(mix) = augmenter.mix() else {
            let (images, labels) = self.augmented(indices, augmenter, epoch);
            return Batch { images, targets: Targets::certain(labels) };
        };
        let size = [self.pixels.size()[1], self.pixels.size()[2]];
        let mixings = mix.draw(indices, epoch, self.len(), size);
        let partners = mixings.iter().map(|mixing| mixing.partner);
        let all: Vec<u32> = indices.iter().copied().chain(partners).collect();
        let (images, labels) = self.augmented(&all, augmenter, epoch);
        let halves = |tensor: &Tensor| {
            let len = indices.len() as i64;
            [tensor.narrow(0, 0, len), tensor.narrow(0, len, len)]
        };
        let ([own, partner], [own_labels, partner_labels]) = (halves(&images), halves(&labels));
        Batch {
            images: augment::mix_images(&own, &partner, &mixings),
            targets: augment::mix_targets([&own_labels, &partner_labels], &mixings, size),
        }
    }

    /// Returns images with all augmentations except mixing, normalised, and their labels.
    fn augmented(&self, indices: &[u32], augmenter: &Augmenter, epoch: usize) -> (Tensor, Tensor) {
        let index = self.index(indices);
        let draws = augmenter.draw(indices, epoch);
        let pixels = draws.change_pixels(self.pixels.index_select(0, &index));
        (draws.blank(self.normalize(&pixels)), self.labels.index_select(0, &index))
    }

    /// The inverse of normalisation: converts `[N, C, H, W]` f32 to the nearest `[N, H, W, C]` bytes.
    pub fn bytes(&self, images: &Tensor) -> Tensor {
        let values = images.permute([0, 2, 3, 1]) * &self.std + &self.mean;
        values.round().clamp(0.0, 255.0).to_kind(Kind::Uint8)
    }

    fn index(&self, indices: &[u32]) -> Tensor {
        let wide: Vec<i64> = indices.iter().map(|&index| i64::from(index)).collect();
        upload(&wide, self.labels.device())
    }

    fn normalize(&self, pixels: &Tensor) -> Tensor {
        let values = (pixels.to_kind(Kind::Float) - &self.mean) / &self.std;
        values.permute([0, 3, 1, 2])
    }
}

/// Copies values to `device` as `[len]` i64; the host does not wait for the copy.
fn upload(values: &[i64], device: Device) -> Tensor {
    send(Tensor::from_slice(values), device)
}

/// Copies values to `device` as `[len]` f32; the host does not wait for the copy.
fn upload_f32(values: &[f64], device: Device) -> Tensor {
    send(Tensor::from_slice(values).to_kind(Kind::Float), device)
}

fn send(values: Tensor, device: Device) -> Tensor {
    match torch_ext::upload(values, device) {
        Ok(tensor) => tensor,
        // Panics as `tch` does when libtorch reports an error.
        Err(error) => panic_any(error),
    }
}
