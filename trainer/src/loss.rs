//! Targets and the cross-entropy loss.

use tch::{Kind, Reduction, Tensor};

/// The targets of a batch of images.
pub struct Targets {
    /// `[N]` i64: the class of each image; for a mixed image, the class of its larger part.
    pub labels: Tensor,
    /// The classes of the smaller parts of mixed images; `None` if images are not mixed.
    pub mixed: Option<Mixed>,
    /// The share of each target that is spread evenly over all classes: 0 to below 1.
    pub label_smoothing: f64,
}

/// The targets of the smaller parts of mixed images.
pub struct Mixed {
    /// `[N]` i64: the class of each smaller part.
    pub labels: Tensor,
    /// `[N]` f32: the share of each smaller part in its target, 0 to 0.5.
    pub share: Tensor,
}

impl Targets {
    /// Targets of images that are each of one class, without label smoothing. `labels`: `[N]` i64.
    pub fn certain(labels: Tensor) -> Self {
        Self { labels, mixed: None, label_smoothing: 0.0 }
    }

    /// Returns a deep copy.
    pub fn copy(&self) -> Self {
        let copy =
            |Mixed { labels, share }: &Mixed| Mixed { labels: labels.copy(), share: share.copy() };
        Self { labels: self.labels.copy(), mixed: self.mixed.as_ref().map(copy), ..*self }
    }

    /// Copies the labels and shares of `other` into these tensors. `other` must have as many images, and be
    /// mixed if and only if these targets are.
    pub fn copy_from(&mut self, other: &Self) {
        self.labels.copy_(&other.labels);
        if let (Some(mixed), Some(other)) = (&mut self.mixed, &other.mixed) {
            mixed.labels.copy_(&other.labels);
            mixed.share.copy_(&other.share);
        }
    }

    /// Returns the number of images.
    pub fn len(&self) -> usize {
        self.labels.numel()
    }

    /// Returns whether there are no images.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the sum over images of the cross-entropy of `[N, classes]` logits with these targets, as a
    /// 0-d f32 tensor. As defined by PyTorch's `cross_entropy` for class probabilities with
    /// `label_smoothing`.
    ///
    /// Source: Szegedy et al., Rethinking the Inception Architecture, CVPR 2016, section 7; Zhang et
    /// al., mixup, ICLR 2018.
    pub fn loss_sum(&self, logits: &Tensor) -> Tensor {
        let Some(Mixed { labels, share }) = &self.mixed else {
            return cross_entropy(logits, &self.labels, Reduction::Sum, self.label_smoothing);
        };
        let with = |labels| cross_entropy(logits, labels, Reduction::None, self.label_smoothing);
        with(&self.labels).lerp_tensor(&with(labels), share).sum(Kind::Float)
    }
}

/// Returns the sum over images of the cross-entropy of `[N, classes]` logits with `[N]` labels, as a 0-d
/// f32 tensor.
pub fn cross_entropy_sum(logits: &Tensor, labels: &Tensor) -> Tensor {
    cross_entropy(logits, labels, Reduction::Sum, 0.0)
}

fn cross_entropy(
    logits: &Tensor,
    labels: &Tensor,
    reduction: Reduction,
    label_smoothing: f64,
) -> Tensor {
    let logits = logits.to_kind(Kind::Float);
    logits.cross_entropy_loss(labels, None::<&Tensor>, reduction, -100, label_smoothing)
}
