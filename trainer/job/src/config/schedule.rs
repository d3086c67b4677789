//! How the learning rate changes.

use serde::{Deserialize, Serialize};

/// How the learning rate changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Schedule {
    /// Its shape.
    pub name: ScheduleName,
    /// Steps over which the rate first rises linearly from 0.
    pub warmup_steps: u64,
}

impl Default for Schedule {
    fn default() -> Self {
        Self { name: ScheduleName::Constant, warmup_steps: 0 }
    }
}

/// A schedule's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleName {
    /// Always `optimizer.lr`.
    Constant,
    /// Half a cosine from `optimizer.lr` to 0 at the end of the run.
    Cosine,
}
