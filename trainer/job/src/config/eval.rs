//! The section `eval`: evaluation on the test images.

use serde::{Deserialize, Serialize};

use super::Invalid;
use super::validate::at_least_one;

/// How a network is evaluated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Eval {
    /// Epochs between evaluations; the last epoch is always evaluated.
    pub every_epochs: usize,
    /// Test-time augmentation.
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

/// Test-time augmentation: the views of an image whose logits are averaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tta {
    /// The image alone.
    #[default]
    None,
    /// The image and its horizontal flip.
    Flip,
    /// The image and its flip, each also shifted by one pixel up and left, and down and right; the shifted
    /// views have half the weight.
    MultiCrop,
}
