//! How gradients become updates.

use serde::{Deserialize, Serialize};

use super::validate::{Invalid, at_least_one, below_one, foreign};

/// How gradients become updates. Keys that an optimizer does not have must not be given.
///
/// [`load`](super::load) leaves every key of the chosen optimizer set, and every other one `None`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default = "Optimizer::unset", deny_unknown_fields)]
pub struct Optimizer {
    /// Which one.
    pub name: OptimizerName,
    /// The learning rate that the schedule starts from.
    pub lr: f64,
    /// How `lr` follows the global batch.
    pub lr_scaling: LrScaling,
    /// The global batch for which `lr` is right, where it follows it, default 256.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lr_batch_size: Option<u64>,
    /// AdamW: decoupled; SGD: added to the gradient.
    pub weight_decay: f64,
    /// Gradients of a larger norm, over all parameters, are scaled down to it; `null`: they are not.
    pub clip_grad_norm: Option<f64>,
    /// AdamW's, default [0.9, 0.999].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub betas: Option<[f64; 2]>,
    /// AdamW's, default 1e-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eps: Option<f64>,
    /// SGD's, default 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub momentum: Option<f64>,
    /// SGD's, default false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nesterov: Option<bool>,
}

impl Default for Optimizer {
    fn default() -> Self {
        let mut optimizer = Self::unset();
        optimizer.fill_in();
        optimizer
    }
}

impl Optimizer {
    /// Checks ranges, and that keys go together.
    pub(super) fn validate(&self) -> Result<(), Invalid> {
        let Optimizer { lr, weight_decay, clip_grad_norm, betas, eps, momentum, nesterov, .. } =
            self;
        if !(*lr > 0.0 && *lr <= 100.0) {
            return Err(Invalid::new(
                "optimizer.lr",
                format!("{lr} is out of range; expected a number above 0, at most 100"),
            ));
        }
        if !(weight_decay.is_finite() && *weight_decay >= 0.0) {
            return Err(Invalid::new(
                "optimizer.weight_decay",
                format!("{weight_decay} is out of range; expected a number, 0 or more"),
            ));
        }
        if let Some(norm) = clip_grad_norm.filter(|norm| !(norm.is_finite() && *norm > 0.0)) {
            let problem = format!("{norm} is out of range; expected a number above 0, or null");
            return Err(Invalid::new("optimizer.clip_grad_norm", problem));
        }
        use OptimizerName::{Adamw, Sgd};
        let keys: [(&str, bool, &[OptimizerName]); 4] = [
            ("betas", betas.is_some(), &[Adamw]),
            ("eps", eps.is_some(), &[Adamw]),
            ("momentum", momentum.is_some(), &[Sgd]),
            ("nesterov", nesterov.is_some(), &[Sgd]),
        ];
        foreign("optimizer", self.name, OptimizerName::as_str, &keys)?;
        if self.lr_batch_size.is_some() && self.lr_scaling == LrScaling::None {
            let problem = "goes with lr_scaling: linear or sqrt only";
            return Err(Invalid::new("optimizer.lr_batch_size", problem));
        }
        at_least_one("optimizer.lr_batch_size", self.lr_batch_size.unwrap_or(1))?;
        for (index, beta) in betas.iter().flatten().enumerate() {
            below_one(&format!("optimizer.betas[{index}]"), *beta)?;
        }
        if let Some(eps) = eps.filter(|eps| !(eps.is_finite() && *eps > 0.0)) {
            let problem = format!("{eps} is out of range; expected a number above 0");
            return Err(Invalid::new("optimizer.eps", problem));
        }
        below_one("optimizer.momentum", momentum.unwrap_or(0.0))?;
        if *nesterov == Some(true) && momentum.unwrap_or(0.0) == 0.0 {
            let problem = "needs momentum; set optimizer.momentum above 0, as in 0.9";
            return Err(Invalid::new("optimizer.nesterov", problem));
        }
        Ok(())
    }
}

impl Optimizer {
    /// The defaults before it is known which optimizer it is.
    pub(super) fn unset() -> Self {
        Self {
            name: OptimizerName::Adamw,
            lr: 0.001,
            lr_scaling: LrScaling::None,
            lr_batch_size: None,
            weight_decay: 0.01,
            clip_grad_norm: None,
            betas: None,
            eps: None,
            momentum: None,
            nesterov: None,
        }
    }

    /// Sets the keys of the chosen optimizer that are not given to their defaults.
    pub(super) fn fill_in(&mut self) {
        if self.lr_scaling != LrScaling::None {
            self.lr_batch_size.get_or_insert(256);
        }
        match self.name {
            OptimizerName::Adamw => {
                self.betas.get_or_insert([0.9, 0.999]);
                self.eps.get_or_insert(1e-8);
            }
            OptimizerName::Sgd => {
                self.momentum.get_or_insert(0.0);
                self.nesterov.get_or_insert(false);
            }
        }
    }
}

/// An optimizer's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OptimizerName {
    /// Adam with decoupled weight decay.
    Adamw,
    /// Stochastic gradient descent, with momentum or without.
    Sgd,
}

impl OptimizerName {
    /// As configurations write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Adamw => "adamw",
            Self::Sgd => "sgd",
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
