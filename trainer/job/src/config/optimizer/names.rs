//! The optimizers, and the values of their keys.

use serde::{Deserialize, Serialize};

/// Name of an optimizer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OptimizerName {
    /// Adam with decoupled weight decay.
    Adamw,
    /// Stochastic gradient descent, with momentum or without.
    Sgd,
    /// SGD with momentum whose learning rate is scaled by the ratio of each tensor's norm to its gradient's.
    Lars,
    /// Adam whose learning rate is scaled by the ratio of each tensor's norm to its update's.
    Lamb,
    /// Orthogonalized momentum, for matrices.
    Muon,
}

impl OptimizerName {
    /// Returns the name in a configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Adamw => "adamw",
            Self::Sgd => "sgd",
            Self::Lars => "lars",
            Self::Lamb => "lamb",
            Self::Muon => "muon",
        }
    }
}

/// How the learning rate scales with the global batch size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LrScaling {
    /// Constant.
    None,
    /// Proportional to the batch size. Source: Goyal et al., Accurate, Large Minibatch SGD, 2017.
    Linear,
    /// Proportional to the square root of the batch size. Source: Krizhevsky, One weird trick, 2014.
    Sqrt,
}

/// How Muon's learning rate depends on the shape of a matrix of `rows` and `columns`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdjustLr {
    /// Not at all.
    None,
    /// Multiplied by `sqrt(max(1, rows / columns))`. Source: Jordan et al., Muon, 2024.
    Original,
    /// Multiplied by `0.2 sqrt(max(rows, columns))`. Source: Liu et al., Muon is Scalable, 2025.
    MatchRmsAdamw,
}

/// Optimizer of the parameters that Muon does not train.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AuxOptimizer {
    /// AdamW.
    Adamw,
    /// SGD with Nesterov's momentum.
    Sgd,
}
