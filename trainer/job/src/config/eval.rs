//! How a network is measured.

use serde::{Deserialize, Serialize};

use super::Invalid;
use super::validate::at_least_one;

/// How a network is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Eval {
    /// Epochs between evaluations; there is always one after the last.
    pub every_epochs: usize,
    /// What logits of a test image are averaged over.
    pub tta: Tta,
}

impl Default for Eval {
    fn default() -> Self {
        Self { every_epochs: 1, tta: Tta::None }
    }
}

impl Eval {
    /// Checks ranges.
    pub(super) fn validate(&self) -> Result<(), Invalid> {
        at_least_one("eval.every_epochs", self.every_epochs as u64)
    }
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
