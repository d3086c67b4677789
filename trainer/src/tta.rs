//! Test-time augmentation: averages the logits of several views of an image.

use job::config::Tta;
use tch::{Kind, Tensor};

use crate::model::{Mode, Module};

/// Returns logits `[N, classes]` of images `[N, C, H, W]`, averaged over the views of `tta`.
///
/// Source: Jordan, airbench, 2024, `infer_mirror` and `infer_mirror_translate`.
pub fn logits(model: &Module, images: &Tensor, tta: Tta) -> Tensor {
    match tta {
        Tta::None => model.forward(images, Mode::Eval),
        Tta::Flip => mirrored(model, images),
        Tta::MultiCrop => {
            let (height, width) = (images.size()[2], images.size()[3]);
            let padded = images.reflection_pad2d([1, 1, 1, 1]);
            let shifted = |by: i64| {
                let view = padded.narrow(2, by, height).narrow(3, by, width);
                mirrored(model, &view)
            };
            mirrored(model, images) * 0.5 + (shifted(0) + shifted(2)) * 0.25
        }
    }
}

fn mirrored(model: &Module, images: &Tensor) -> Tensor {
    let one = |images: &Tensor| model.forward(images, Mode::Eval).to_kind(Kind::Float);
    (one(images) + one(&images.flip([3]))) * 0.5
}
