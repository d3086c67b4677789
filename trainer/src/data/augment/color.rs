//! Brightness, contrast, saturation and hue, as torchvision changes them.
//!
//! Images are `[N, C, H, W]` f32 with whole numbers from 0 to 255 and one or three channels; each image has
//! its own factor. Results are rounded down to whole numbers, as torchvision does with bytes.
//!
//! Source: torchvision 0.26, `transforms/_functional_tensor.py`.

use tch::Tensor;

use crate::data::upload_f32;

/// Changes brightness. `factors`: `[N]`; 1 changes nothing.
pub fn brightness(images: &Tensor, factors: &[f64]) -> Tensor {
    blend(images, &images.zeros_like(), factors)
}

/// Changes contrast, around the mean of the grey image. `factors`: `[N]`; 1 changes nothing.
pub fn contrast(images: &Tensor, factors: &[f64]) -> Tensor {
    let mean = grey(images).mean_dim([1i64, 2, 3].as_slice(), true, None);
    blend(images, &mean, factors)
}

/// Changes saturation. `factors`: `[N]`; 1 changes nothing. Grey images stay unchanged.
pub fn saturation(images: &Tensor, factors: &[f64]) -> Tensor {
    match images.size()[1] {
        1 => images.shallow_clone(),
        _ => blend(images, &grey(images), factors),
    }
}

/// Rotates hues. `shifts`: `[N]`, as fractions of the colour circle, -0.5 to 0.5. Grey images stay unchanged.
pub fn hue(images: &Tensor, shifts: &[f64]) -> Tensor {
    if images.size()[1] == 1 {
        return images.shallow_clone();
    }
    let [hue, saturation, value] = to_hsv(&(images / 255.0));
    let shift = upload_f32(shifts, images.device()).view([-1, 1, 1]);
    let hue = (hue + shift).remainder(1.0);
    (to_rgb(&hue, &saturation, &value) * 255.999).floor()
}

/// Computes `images * factor + others * (1 - factor)`, clamped to 0 to 255 and rounded down.
pub(super) fn blend(images: &Tensor, others: &Tensor, factors: &[f64]) -> Tensor {
    let rest: Vec<f64> = factors.iter().map(|factor| 1.0 - factor).collect();
    let [factor, rest] =
        [factors, &rest].map(|values| upload_f32(values, images.device()).view([-1, 1, 1, 1]));
    (images * factor + others * rest).clamp(0.0, 255.0).floor()
}

/// Converts to grey, `[N, 1, H, W]`.
fn grey(images: &Tensor) -> Tensor {
    if images.size()[1] == 1 {
        return images.shallow_clone();
    }
    let [red, green, blue] = [0, 1, 2].map(|channel| images.narrow(1, channel, 1));
    (red * 0.2989 + green * 0.587 + blue * 0.114).floor()
}

/// Converts `[N, 3, H, W]` RGB in 0 to 1 to hue, saturation and value, `[N, H, W]` each.
fn to_hsv(images: &Tensor) -> [Tensor; 3] {
    let [red, green, blue] = [0, 1, 2].map(|channel| images.select(1, channel));
    let (largest, smallest) = (images.amax(1, false), images.amin(1, false));
    let range = &largest - &smallest;
    // Grey pixels have no hue and a range of 0: divide by 1 instead.
    let is_grey = largest.eq_tensor(&smallest);
    let ones = largest.ones_like();
    let saturation = &range / ones.where_self(&is_grey, &largest);
    let divisor = ones.where_self(&is_grey, &range);
    let [r, g, b] = [&red, &green, &blue].map(|channel| (&largest - channel) / &divisor);
    let is_red = largest.eq_tensor(&red);
    let is_green = largest.eq_tensor(&green).logical_and(&is_red.logical_not());
    let is_blue = largest.ne_tensor(&green).logical_and(&is_red.logical_not());
    let hue = (&b - &g) * is_red + (&r + 2.0 - &b) * is_green + (&g + 4.0 - &r) * is_blue;
    [(hue / 6.0 + 1.0).fmod(1.0), saturation, largest]
}

/// The inverse of [`to_hsv`].
fn to_rgb(hue: &Tensor, saturation: &Tensor, value: &Tensor) -> Tensor {
    let sector = (hue * 6.0).floor();
    let fraction = hue * 6.0 - &sector;
    let part = |amount: Tensor| (value * (amount * -1.0 + 1.0)).clamp(0.0, 1.0);
    let p = part(saturation.shallow_clone());
    let q = part(saturation * &fraction);
    let t = part(saturation * (fraction * -1.0 + 1.0));
    let (v, (count, height, width)) = (value, (hue.size()[0], hue.size()[1], hue.size()[2]));
    let sector = sector.remainder(6.0).to_kind(tch::Kind::Int64).view([count, 1, 1, height, width]);
    let choices = [[v, &q, &p, &p, &t, v], [&t, v, v, &q, &p, &p], [&p, &p, &t, v, v, &q]];
    let choices = choices.map(|channel| Tensor::stack(&channel, 1));
    let index = sector.expand([count, 3, 1, height, width], false);
    Tensor::stack(&choices, 1).gather(2, &index, false).squeeze_dim(2)
}
