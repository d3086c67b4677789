//! What logits are compared with, and the loss that comes of it.

use tch::{Kind, Reduction, Tensor};

/// What a batch's logits are to be.
pub struct Targets {
    /// `[N]` i64: the class of each image; of a mixed one, that of its larger part.
    pub labels: Tensor,
    /// What else mixed images are.
    pub mixed: Option<Mixed>,
    /// The part of each target that is spread evenly over all classes: 0 to below 1.
    pub label_smoothing: f64,
}

/// The smaller parts of mixed images.
pub struct Mixed {
    /// `[N]` i64: their classes.
    pub labels: Tensor,
    /// `[N]` f32: how much of the target they are, 0 to 0.5.
    pub share: Tensor,
}

impl Targets {
    /// Each image is of one class, and certainly so.
    pub fn certain(labels: Tensor) -> Self {
        Self { labels, mixed: None, label_smoothing: 0.0 }
    }

    /// The same with tensors of their own.
    pub fn copy(&self) -> Self {
        let copy =
            |Mixed { labels, share }: &Mixed| Mixed { labels: labels.copy(), share: share.copy() };
        Self { labels: self.labels.copy(), mixed: self.mixed.as_ref().map(copy), ..*self }
    }

    /// Takes over targets of as many images, mixed where these are, in place.
    pub fn copy_from(&mut self, other: &Self) {
        self.labels.copy_(&other.labels);
        if let (Some(mixed), Some(other)) = (&mut self.mixed, &other.mixed) {
            mixed.labels.copy_(&other.labels);
            mixed.share.copy_(&other.share);
        }
    }

    /// Images that they are for.
    pub fn len(&self) -> usize {
        self.labels.numel()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The sum of the losses of `[N, classes]` logits, a number: of each image the cross-entropy with
    /// its target, as PyTorch's `cross_entropy` defines it for probabilities and `label_smoothing`.
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

/// The sum of the losses of `[N, classes]` logits, a number.
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
