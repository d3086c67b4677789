//! Defaults of the optimizer's keys.

use super::{AdjustLr, AuxOptimizer, LrScaling, Optimizer, OptimizerName};

/// Each method returns the value of the key of the same name if it is given, else its default.
impl Optimizer {
    /// The global batch size for which `lr` is tuned.
    pub fn lr_batch_size(&self) -> u64 {
        self.lr_batch_size.unwrap_or(256)
    }

    /// Fraction of the slow weights that is kept when they are synchronized.
    pub fn lookahead_decay(&self) -> f64 {
        self.lookahead_decay.unwrap_or(0.5)
    }

    /// Power of the run's progress by which `lookahead_decay` is multiplied.
    pub fn lookahead_power(&self) -> f64 {
        self.lookahead_power.unwrap_or(0.0)
    }

    /// Decay rates of the two moments.
    pub fn betas(&self) -> [f64; 2] {
        self.betas.unwrap_or([0.9, 0.999])
    }

    /// Added to the root of the second moment.
    pub fn eps(&self) -> f64 {
        self.eps.unwrap_or(if self.name == OptimizerName::Lamb { 1e-6 } else { 1e-8 })
    }

    /// Momentum factor.
    pub fn momentum(&self) -> f64 {
        self.momentum.unwrap_or(match self.name {
            OptimizerName::Lars => 0.9,
            OptimizerName::Muon => 0.95,
            _ => 0.0,
        })
    }

    /// Whether momentum is Nesterov's.
    pub fn nesterov(&self) -> bool {
        self.nesterov.unwrap_or(self.name == OptimizerName::Muon)
    }

    /// Ratio of a tensor's step to its norm (LARS).
    pub fn trust_coefficient(&self) -> f64 {
        self.trust_coefficient.unwrap_or(0.001)
    }

    /// Number of Newton-Schulz iterations (Muon).
    pub fn ns_steps(&self) -> i64 {
        self.ns_steps.unwrap_or(5)
    }

    /// How the learning rate depends on a matrix's shape (Muon).
    pub fn adjust_lr(&self) -> AdjustLr {
        self.adjust_lr.unwrap_or(AdjustLr::Original)
    }

    /// Whether a matrix is scaled to a fixed norm before each step (Muon).
    pub fn normalize_weights(&self) -> bool {
        self.normalize_weights.unwrap_or(false)
    }

    /// Optimizer of the parameters that Muon does not train.
    pub fn aux(&self) -> AuxOptimizer {
        self.aux.unwrap_or(AuxOptimizer::Adamw)
    }

    /// Learning rate of `aux`.
    pub fn aux_lr(&self) -> f64 {
        self.aux_lr.unwrap_or(0.001)
    }

    /// Weight decay of `aux`.
    pub fn aux_weight_decay(&self) -> f64 {
        self.aux_weight_decay.unwrap_or(0.01)
    }

    /// Momentum of `aux: sgd`.
    pub fn aux_momentum(&self) -> f64 {
        self.aux_momentum.unwrap_or(0.9)
    }

    /// Sets the keys of the chosen optimizer that are not given to their defaults.
    pub(in super::super) fn fill_in(&mut self) {
        if self.lr_scaling != LrScaling::None {
            self.lr_batch_size = Some(self.lr_batch_size());
        }
        if self.lookahead_steps.is_some() {
            self.lookahead_decay = Some(self.lookahead_decay());
            self.lookahead_power = Some(self.lookahead_power());
        }
        match self.name {
            OptimizerName::Adamw | OptimizerName::Lamb => self.fill_in_adam(),
            OptimizerName::Sgd => {
                self.momentum = Some(self.momentum());
                self.nesterov = Some(self.nesterov());
            }
            OptimizerName::Lars => {
                self.momentum = Some(self.momentum());
                self.trust_coefficient = Some(self.trust_coefficient());
            }
            OptimizerName::Muon => {
                self.momentum = Some(self.momentum());
                self.nesterov = Some(self.nesterov());
                self.ns_steps = Some(self.ns_steps());
                self.adjust_lr = Some(self.adjust_lr());
                self.normalize_weights = Some(self.normalize_weights());
                self.aux = Some(self.aux());
                self.aux_lr = Some(self.aux_lr());
                self.aux_weight_decay = Some(self.aux_weight_decay());
                match self.aux() {
                    AuxOptimizer::Adamw => self.fill_in_adam(),
                    AuxOptimizer::Sgd => self.aux_momentum = Some(self.aux_momentum()),
                }
            }
        }
    }

    fn fill_in_adam(&mut self) {
        self.betas = Some(self.betas());
        self.eps = Some(self.eps());
    }
}
