//! The section `model`: the network.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::ModelName;
use super::validate::{Invalid, below_one};

/// The network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Model {
    /// Name of the network.
    pub name: ModelName,
    /// The layers before the first stage.
    pub stem: Stem,
    /// Whether the scale of each block's last batch norm starts at 0, so that blocks start as the identity.
    pub zero_init_residual: bool,
    /// Probability that a training step skips the last block; earlier blocks have a probability that rises
    /// linearly from the first block to this.
    pub stochastic_depth: f64,
    /// Dropout probability, for networks whose paper has dropout; `null`: as published.
    pub dropout: Option<f64>,
    /// Path of a torchvision state dict, as safetensors, with the initial weights; `null`: random weights.
    pub from_torchvision: Option<PathBuf>,
}

impl Default for Model {
    fn default() -> Self {
        Self {
            name: ModelName::default(),
            stem: Stem::Notes,
            zero_init_residual: false,
            stochastic_depth: 0.0,
            dropout: None,
            from_torchvision: None,
        }
    }
}

impl Model {
    /// Checks ranges, and that keys go together.
    pub(super) fn validate(&self) -> Result<(), Invalid> {
        let (name, entry) = (self.name, self.name.entry());
        below_one("model.stochastic_depth", self.stochastic_depth)?;
        below_one("model.dropout", self.dropout.unwrap_or(0.0))?;
        if entry.has_own_stem() && self.stem != entry.dataset.stem() {
            let own = entry.dataset.stem().as_str();
            let problem = format!("{name} supports only its own stem, `{own}`");
            return Err(Invalid::new("model.stem", problem));
        }
        if self.stochastic_depth > 0.0 && !entry.is_residual() {
            let problem =
                format!("{name} has no blocks that stochastic depth can skip; remove this key");
            return Err(Invalid::new("model.stochastic_depth", problem));
        }
        if self.zero_init_residual && !entry.ends_blocks_with_norm() {
            let problem = format!("no block of {name} ends with a batch norm; remove this key");
            return Err(Invalid::new("model.zero_init_residual", problem));
        }
        if self.dropout.is_some() && !entry.has_dropout() {
            let problem =
                format!("{name} has no dropout; remove this key, or use a wrn or vgg network");
            return Err(Invalid::new("model.dropout", problem));
        }
        if self.from_torchvision.is_some() && !entry.in_torchvision {
            let problem =
                format!("torchvision has no {name}; `trainer models` marks the networks it has");
            return Err(Invalid::new("model.from_torchvision", problem));
        }
        Ok(())
    }
}

/// The layers before the first stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stem {
    /// 3x3 convolution of stride 2, then 3x3 max-pool of stride 2.
    Notes,
    /// 3x3 convolution of stride 1, no pool.
    Cifar,
    /// 7x7 convolution of stride 2, then 3x3 max-pool of stride 2.
    Imagenet,
}

impl Stem {
    /// All stems.
    pub const ALL: [Self; 3] = [Self::Notes, Self::Cifar, Self::Imagenet];

    /// Returns the name of the stem in a configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Notes => "notes",
            Self::Cifar => "cifar",
            Self::Imagenet => "imagenet",
        }
    }
}
