//! The section `optimizer`.

mod defaults;
mod frozen;
mod names;

use serde::{Deserialize, Serialize};

use super::validate::{Invalid, at_least_one, below_one, foreign, in_range, within};
use super::{Model, Precision};

pub use names::{AdjustLr, AuxOptimizer, LrScaling, OptimizerName};

/// The optimizer and its hyperparameters. Keys that the chosen optimizer does not have must not be given.
///
/// [`load`](super::load()) sets every key of the chosen optimizer and leaves all others `None`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default = "Optimizer::unset", deny_unknown_fields)]
pub struct Optimizer {
    /// Name of the optimizer.
    pub name: OptimizerName,
    /// The learning rate that the schedule starts from.
    pub lr: f64,
    /// How `lr` scales with the global batch size.
    pub lr_scaling: LrScaling,
    /// Global batch size for which `lr` is tuned, with `lr_scaling` only; default 256.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lr_batch_size: Option<u64>,
    /// Weight decay: added to the gradient by SGD and LARS, decoupled in the others.
    pub weight_decay: f64,
    /// Whether weight decay, and the adaptive learning rates of LARS and LAMB, also apply to biases and batch
    /// norms.
    pub decay_norm_and_bias: bool,
    /// Factor of the learning rate of batch norms' biases. Their weight decay is divided by it, so that what
    /// decay subtracts per step stays the same.
    pub norm_bias_lr_factor: f64,
    /// Parameters that are not trained: names, in which `*` matches anything, or `norm_weights` for the
    /// scales of all batch norms.
    pub frozen: Vec<String>,
    /// Largest norm of the gradients over all parameters, to which larger gradients are scaled down; `null`:
    /// no clipping.
    pub clip_grad_norm: Option<f64>,
    /// Look-ahead: steps between synchronizations of the weights with the slow weights; `null`: no
    /// look-ahead.
    pub lookahead_steps: Option<u64>,
    /// Look-ahead: fraction of the slow weights that is kept when they are synchronized, at the end of the
    /// run; default 0.5.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lookahead_decay: Option<f64>,
    /// Look-ahead: `lookahead_decay` is multiplied by the completed fraction of the run to this power;
    /// default 0, a constant decay.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lookahead_power: Option<f64>,
    /// Decay rates of the two moments, of AdamW (also as `aux` of Muon) and LAMB; default [0.9, 0.999].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub betas: Option<[f64; 2]>,
    /// Added to the denominator, of AdamW (also as `aux` of Muon), default 1e-8, and LAMB, default 1e-6.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eps: Option<f64>,
    /// Momentum of SGD, default 0, LARS, default 0.9, and Muon, default 0.95.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub momentum: Option<f64>,
    /// Whether momentum is Nesterov's, of SGD, default false, and Muon, default true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nesterov: Option<bool>,
    /// LARS: ratio of a tensor's step to its norm; default 0.001.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trust_coefficient: Option<f64>,
    /// Muon: number of Newton-Schulz iterations; default 5.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ns_steps: Option<i64>,
    /// Muon: how the learning rate depends on a matrix's shape; default original.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adjust_lr: Option<AdjustLr>,
    /// Muon: whether a matrix of n rows is scaled to a norm of sqrt(n) before each step; default false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub normalize_weights: Option<bool>,
    /// Muon: optimizer of the classifier and of all parameters that are not matrices; default AdamW.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aux: Option<AuxOptimizer>,
    /// Learning rate of `aux`, which follows the schedule as `lr` does; default 0.001.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aux_lr: Option<f64>,
    /// Weight decay of `aux`; default 0.01.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aux_weight_decay: Option<f64>,
    /// Momentum of `aux: sgd`; default 0.9.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aux_momentum: Option<f64>,
}

impl Default for Optimizer {
    fn default() -> Self {
        let mut optimizer = Self::unset();
        optimizer.fill_in();
        optimizer
    }
}

impl Optimizer {
    /// Returns whether an update depends on whole tensors, taps that never see a pixel included, or on
    /// earlier weights; then such taps must not be left out.
    pub fn needs_whole_tensors(&self) -> bool {
        matches!(self.name, OptimizerName::Lars | OptimizerName::Lamb)
            || self.normalize_weights == Some(true)
            || self.lookahead_steps.is_some()
    }

    /// Returns whether look-ahead's decay depends on the length of the run.
    pub fn lookahead_depends_on_length(&self) -> bool {
        self.lookahead_steps.is_some() && self.lookahead_power() > 0.0
    }

    /// Checks ranges, and that keys go together.
    pub(super) fn validate(&self, model: &Model, precision: Precision) -> Result<(), Invalid> {
        self.only_its_own_keys()?;
        let range = |key: &str, value, good, expected| {
            in_range(&format!("optimizer.{key}"), value, good, expected)
        };
        let above_0 = "a number above 0";
        let (to_100, not_negative) = ("a number above 0, at most 100", "a number, 0 or more");
        range("lr", Some(self.lr), |lr| lr > 0.0 && lr <= 100.0, to_100)?;
        at_least_one("optimizer.lr_batch_size", self.lr_batch_size.unwrap_or(1))?;
        range("weight_decay", Some(self.weight_decay), |decay| decay >= 0.0, not_negative)?;
        let factor = Some(self.norm_bias_lr_factor);
        range("norm_bias_lr_factor", factor, |factor| factor > 0.0, above_0)?;
        let clip = self.clip_grad_norm;
        range("clip_grad_norm", clip, |norm| norm > 0.0, "a number above 0, or null")?;
        at_least_one("optimizer.lookahead_steps", self.lookahead_steps.unwrap_or(1))?;
        below_one("optimizer.lookahead_decay", self.lookahead_decay.unwrap_or(0.0))?;
        range("lookahead_power", self.lookahead_power, |power| power >= 0.0, not_negative)?;
        for (index, beta) in self.betas.iter().flatten().enumerate() {
            below_one(&format!("optimizer.betas[{index}]"), *beta)?;
        }
        range("eps", self.eps, |eps| eps > 0.0, above_0)?;
        below_one("optimizer.momentum", self.momentum.unwrap_or(0.0))?;
        range("trust_coefficient", self.trust_coefficient, |trust| trust > 0.0, above_0)?;
        within("optimizer.ns_steps", self.ns_steps.unwrap_or(1), 1..=99)?;
        range("aux_lr", self.aux_lr, |lr| lr > 0.0 && lr <= 100.0, to_100)?;
        range("aux_weight_decay", self.aux_weight_decay, |decay| decay >= 0.0, not_negative)?;
        below_one("optimizer.aux_momentum", self.aux_momentum.unwrap_or(0.0))?;
        if self.nesterov == Some(true) && self.momentum() == 0.0 {
            let problem = "needs momentum; set optimizer.momentum above 0, as in 0.9";
            return Err(Invalid::new("optimizer.nesterov", problem));
        }
        self.validate_frozen(model)?;
        let skips_steps = matches!(self.name, OptimizerName::Adamw | OptimizerName::Sgd)
            && self.lookahead_steps.is_none();
        if precision == Precision::Fp16 && !skips_steps {
            let problem = "fp16 skips steps whose gradients overflow, which only adamw and sgd \
                           without look-ahead can do; use bf16 or fp32 with this optimizer";
            return Err(Invalid::new("precision", problem));
        }
        Ok(())
    }

    fn only_its_own_keys(&self) -> Result<(), Invalid> {
        use OptimizerName::{Adamw, Lamb, Lars, Muon, Sgd};
        let keys: [(&str, bool, &[OptimizerName]); 12] = [
            ("betas", self.betas.is_some(), &[Adamw, Lamb, Muon]),
            ("eps", self.eps.is_some(), &[Adamw, Lamb, Muon]),
            ("momentum", self.momentum.is_some(), &[Sgd, Lars, Muon]),
            ("nesterov", self.nesterov.is_some(), &[Sgd, Muon]),
            ("trust_coefficient", self.trust_coefficient.is_some(), &[Lars]),
            ("ns_steps", self.ns_steps.is_some(), &[Muon]),
            ("adjust_lr", self.adjust_lr.is_some(), &[Muon]),
            ("normalize_weights", self.normalize_weights.is_some(), &[Muon]),
            ("aux", self.aux.is_some(), &[Muon]),
            ("aux_lr", self.aux_lr.is_some(), &[Muon]),
            ("aux_weight_decay", self.aux_weight_decay.is_some(), &[Muon]),
            ("aux_momentum", self.aux_momentum.is_some(), &[Muon]),
        ];
        foreign("optimizer", self.name, OptimizerName::as_str, &keys)?;
        let (is_muon, aux) = (self.name == Muon, self.aux());
        let aux_is = |wanted| !is_muon || aux == wanted;
        let goes_with = [
            (
                "lr_batch_size",
                self.lr_batch_size.is_some(),
                self.lr_scaling != LrScaling::None,
                "`lr_scaling: linear` or `sqrt`",
            ),
            (
                "lookahead_decay",
                self.lookahead_decay.is_some(),
                self.lookahead_steps.is_some(),
                "`lookahead_steps`",
            ),
            (
                "lookahead_power",
                self.lookahead_power.is_some(),
                self.lookahead_steps.is_some(),
                "`lookahead_steps`",
            ),
            ("betas", self.betas.is_some(), aux_is(AuxOptimizer::Adamw), "`aux: adamw`"),
            ("eps", self.eps.is_some(), aux_is(AuxOptimizer::Adamw), "`aux: adamw`"),
            ("aux_momentum", self.aux_momentum.is_some(), aux_is(AuxOptimizer::Sgd), "`aux: sgd`"),
        ];
        match goes_with.iter().find(|(_, given, goes, _)| *given && !goes) {
            Some((key, _, _, with)) => {
                let problem = format!("has no effect without {with}; set that, or remove this key");
                Err(Invalid::new(&format!("optimizer.{key}"), problem))
            }
            None => Ok(()),
        }
    }

    /// Returns the defaults before the optimizer's name is known: keys of particular optimizers are `None`.
    pub(super) fn unset() -> Self {
        Self {
            name: OptimizerName::Adamw,
            lr: 0.001,
            lr_scaling: LrScaling::None,
            lr_batch_size: None,
            weight_decay: 0.01,
            decay_norm_and_bias: true,
            norm_bias_lr_factor: 1.0,
            frozen: Vec::new(),
            clip_grad_norm: None,
            lookahead_steps: None,
            lookahead_decay: None,
            lookahead_power: None,
            betas: None,
            eps: None,
            momentum: None,
            nesterov: None,
            trust_coefficient: None,
            ns_steps: None,
            adjust_lr: None,
            normalize_weights: None,
            aux: None,
            aux_lr: None,
            aux_weight_decay: None,
            aux_momentum: None,
        }
    }

    /// Returns an optimizer with every key set, for the list of known keys.
    pub(super) fn with_every_key() -> Self {
        let filled = |name, aux| {
            let mut optimizer = Self { name, aux, ..Self::unset() };
            optimizer.fill_in();
            optimizer
        };
        Self {
            lr_batch_size: Some(0),
            lookahead_decay: Some(0.0),
            lookahead_power: Some(0.0),
            trust_coefficient: Some(0.0),
            aux_momentum: Some(0.0),
            ..filled(OptimizerName::Muon, Some(AuxOptimizer::Adamw))
        }
    }
}
