//! Posterized, solarized, sharpened, stretched and equalized images, as torchvision makes them.
//!
//! Images are `[N, C, H, W]` f32 with whole numbers from 0 to 255, and so are the results.
//!
//! Source: torchvision 0.26, `transforms/_functional_tensor.py`.

use tch::{Kind, Tensor};

use super::color::blend;
use super::sizes;

/// Keeps the upper `bits` of each byte.
pub fn posterize(images: &Tensor, bits: i32) -> Tensor {
    let step = f64::from(1 << (8 - bits));
    (images / step).floor() * step
}

/// Inverts pixels that are at least `threshold`.
pub fn solarize(images: &Tensor, threshold: f64) -> Tensor {
    (images * -1.0 + 255.0).where_self(&images.ge(threshold), images)
}

/// Sharpens or softens, except at the border. `factors`: `[N]`; 1 changes nothing.
pub fn sharpness(images: &Tensor, factors: &[f64]) -> Tensor {
    let (_, _, height, width) = sizes(images);
    if height <= 2 || width <= 2 {
        return images.shallow_clone();
    }
    let inner = |images: &Tensor| images.narrow(2, 1, height - 2).narrow(3, 1, width - 2);
    // Average pooling sums whole numbers, which is exact; a convolution on a GPU may round to TF32.
    let around = images.avg_pool2d([3, 3], [1, 1], [0, 0], false, true, 1);
    let soft = images.copy();
    inner(&soft).copy_(&((around + inner(images) * 4.0) / 13.0).round());
    blend(images, &soft, factors)
}

/// Stretches each channel of each image to the whole range of 0 to 255.
pub fn autocontrast(images: &Tensor) -> Tensor {
    let (smallest, largest) = (images.amin([2i64, 3], true), images.amax([2i64, 3], true));
    let range = &largest - &smallest;
    let is_flat = range.eq(0.0);
    let scale = (range.reciprocal() * 255.0).masked_fill(&is_flat, 1.0);
    ((images - smallest.masked_fill(&is_flat, 0.0)) * scale).clamp(0.0, 255.0).floor()
}

/// Equalizes the histogram of each channel of each image.
pub fn equalize(images: &Tensor) -> Tensor {
    let (count, channels, height, width) = sizes(images);
    let rows = count * channels;
    let bytes = images.contiguous().view([rows, -1]).to_kind(Kind::Int64);
    // `scatter_add`, since `bincount` would wait for the GPU.
    let histogram = Tensor::zeros([rows, 256], (Kind::Int64, images.device())).scatter_add(
        1,
        &bytes,
        &bytes.ones_like(),
    );
    // The number of pixels, those of the largest value excepted, per step of the table.
    let last = histogram.gather(1, &bytes.amax(1, true), false);
    let step = (last * -1 + height * width).floor_divide_scalar(255);
    let is_kept = step.eq(0);
    let step = step.clamp_min(1);
    let half = step.floor_divide_scalar(2);
    let table = (histogram.cumsum(1, None) + half).floor_divide(&step);
    let table = table.constant_pad_nd([1, 0]).narrow(1, 0, 256).clamp(0, 255);
    let equalized = table.gather(1, &bytes, false);
    bytes.where_self(&is_kept, &equalized).to_kind(Kind::Float).view_as(images)
}
