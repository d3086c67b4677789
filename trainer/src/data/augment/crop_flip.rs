//! Random crops and flips, in one gather.

use job::config::{Crop, Padding};
use tch::Tensor;

use super::sizes;

/// Position of the crop and orientation of one image.
pub(super) struct Source {
    /// Row and column of the padded image at which the crop starts; `None` without a crop.
    pub(super) start: Option<(i64, i64)>,
    pub(super) mirrored: bool,
}

/// Crops and flips `[N, H, W, C]` bytes.
pub(super) fn apply(
    pixels: &Tensor,
    crop: Option<Crop>,
    images: impl Iterator<Item = Source>,
) -> Tensor {
    let (count, height, width, channels) = sizes(pixels);
    let padding = crop.map_or(0, |crop| crop.padding as i64);
    // Zero padding has to be stored to be gathered; reflected pixels are in the image already.
    let (padded, stored_width) = match crop.map(|crop| crop.mode) {
        Some(Padding::Zero) => {
            let sides = [0, 0, padding, padding, padding, padding];
            (pixels.constant_pad_nd(sides), width + 2 * padding)
        }
        Some(Padding::Reflect) | None => (pixels.shallow_clone(), width),
    };
    let reflects = crop.is_some_and(|crop| crop.mode == Padding::Reflect);
    let place = |at: i64, size: i64| if reflects { reflected(at - padding, size) } else { at };

    let mut sources = Vec::with_capacity((count * height * width) as usize);
    for Source { start, mirrored } in images {
        let (top, left) = start.unwrap_or_default();
        let column = |column| left + if mirrored { width - 1 - column } else { column };
        let columns: Vec<i64> = (0..width).map(|at| place(column(at), width)).collect();
        for row in top..top + height {
            let row_start = place(row, height) * stored_width;
            sources.extend(columns.iter().map(|column| row_start + column));
        }
    }
    let sources = crate::data::upload(&sources, pixels.device())
        .view([count, height * width, 1])
        .expand([count, height * width, channels], false);
    padded
        .view([count, -1, channels])
        .gather(1, &sources, false)
        .view([count, height, width, channels])
}

/// Returns `at` if it is within `0..size`; otherwise reflects it at the outermost pixel, which is not
/// repeated.
fn reflected(at: i64, size: i64) -> i64 {
    (size - 1) - ((size - 1) - at.abs()).abs()
}
