//! Which optimizers there are, and what they can be told to do.

use serde::{Deserialize, Serialize};

/// An optimizer's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OptimizerName {
    /// Adam with decoupled weight decay.
    Adamw,
    /// Stochastic gradient descent, with momentum or without.
    Sgd,
    /// SGD with momentum whose rate follows each tensor's norm against its gradient's.
    Lars,
    /// Adam whose rate follows each tensor's norm against its update's.
    Lamb,
    /// Momentum that is made orthogonal, for matrices.
    Muon,
}

impl OptimizerName {
    /// As configurations write it.
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

/// How the learning rate follows the global batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LrScaling {
    /// It does not.
    None,
    /// In proportion to it. Source: Goyal et al., Accurate, Large Minibatch SGD, 2017.
    Linear,
    /// In proportion to its square root. Source: Krizhevsky, One weird trick, 2014.
    Sqrt,
}

/// How Muon's rate follows the shape of a matrix of `rows` and `columns`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdjustLr {
    /// It does not.
    None,
    /// Times `sqrt(max(1, rows / columns))`. Source: Jordan et al., Muon, 2024.
    Original,
    /// Times `0.2 sqrt(max(rows, columns))`. Source: Liu et al., Muon is Scalable, 2025.
    MatchRmsAdamw,
}

/// What trains parameters that Muon does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AuxOptimizer {
    /// AdamW.
    Adamw,
    /// SGD with Nesterov's momentum.
    Sgd,
}
