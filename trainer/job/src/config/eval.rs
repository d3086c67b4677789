//! How a network is measured.

use serde::{Deserialize, Serialize};

/// How a network is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Eval {
    /// What logits of a test image are averaged over.
    pub tta: Tta,
}

/// Test-time augmentation: what logits of an image are averaged over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tta {
    /// The image alone.
    #[default]
    None,
    /// The image and its mirror image.
    Flip,
    /// Besides, both shifted by a pixel up and left, and down and right; those count half.
    MultiCrop,
}
