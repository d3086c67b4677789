//! How gradients become updates.

mod defaults;
mod frozen;
mod names;

use serde::{Deserialize, Serialize};

use super::validate::{Invalid, at_least_one, below_one, foreign, within};
use super::{Model, Precision};

pub use names::{AdjustLr, AuxOptimizer, LrScaling, OptimizerName};

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
    /// SGD and LARS: added to the gradient; others: decoupled.
    pub weight_decay: f64,
    /// Whether biases and batch norms decay too, and LARS and LAMB adapt their rates.
    pub decay_norm_and_bias: bool,
    /// What the learning rate of batch norms' biases is multiplied by. Their weight decay is divided by
    /// it, so that what a step takes from them by decay stays.
    pub norm_bias_lr_factor: f64,
    /// Parameters that are not trained: names, in which `*` stands for anything, or `norm_weights`, the
    /// scales of all batch norms.
    pub frozen: Vec<String>,
    /// Gradients of a larger norm, over all parameters, are scaled down to it; `null`: they are not.
    pub clip_grad_norm: Option<f64>,
    /// Look-ahead: after so many steps weights and slow weights meet; `null`: there are none.
    pub lookahead_steps: Option<u64>,
    /// Look-ahead's: how much of the slow weights stays when they meet, at the end of the run, default
    /// 0.5.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lookahead_decay: Option<f64>,
    /// Look-ahead's: the power of the part of the run that is done, by which `lookahead_decay` is
    /// multiplied, default 0: it is always the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lookahead_power: Option<f64>,
    /// AdamW's, LAMB's and those of AdamW beside Muon, default [0.9, 0.999].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub betas: Option<[f64; 2]>,
    /// AdamW's, also beside Muon, default 1e-8, and LAMB's, default 1e-6.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eps: Option<f64>,
    /// SGD's, default 0, LARS's, default 0.9, and Muon's, default 0.95.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub momentum: Option<f64>,
    /// SGD's, default false, and Muon's, default true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nesterov: Option<bool>,
    /// LARS's: a tensor's step against its norm, default 0.001.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trust_coefficient: Option<f64>,
    /// Muon's: Newton-Schulz iterations, default 5.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ns_steps: Option<i64>,
    /// Muon's: how the rate follows a matrix's shape, default original.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adjust_lr: Option<AdjustLr>,
    /// Muon's: whether a matrix of n rows is brought to a norm of sqrt(n) before each step, default
    /// false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub normalize_weights: Option<bool>,
    /// Muon's: what trains the parameters that are no matrices, and the classifier, default AdamW.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aux: Option<AuxOptimizer>,
    /// The learning rate of `aux`, which goes with the schedule as `lr` does, default 0.001.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aux_lr: Option<f64>,
    /// The weight decay of `aux`, default 0.01.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aux_weight_decay: Option<f64>,
    /// The momentum of `aux: sgd`, default 0.9.
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
    /// Whether an update depends on tensors as wholes, taps that never see a pixel included, or on
    /// earlier weights.
    pub fn needs_whole_tensors(&self) -> bool {
        matches!(self.name, OptimizerName::Lars | OptimizerName::Lamb)
            || self.normalize_weights == Some(true)
            || self.lookahead_steps.is_some()
    }

    /// Whether look-ahead's decay follows how much of the run is done.
    pub fn lookahead_depends_on_length(&self) -> bool {
        self.lookahead_steps.is_some() && self.lookahead_power() > 0.0
    }

    /// Checks ranges, and that keys go together.
    pub(super) fn validate(&self, model: &Model, precision: Precision) -> Result<(), Invalid> {
        self.only_its_own_keys()?;
        let range = |key: &str, value: Option<f64>, good: fn(f64) -> bool, expected: &str| {
            let problem = |value| format!("{value} is out of range; expected {expected}");
            match value.filter(|value| !(good(*value) && value.is_finite())) {
                Some(value) => Err(Invalid::new(&format!("optimizer.{key}"), problem(value))),
                None => Ok(()),
            }
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
            let problem = "fp16 skips steps whose gradients overflow, which adamw and sgd can do, without \
                           look-ahead; take bf16 or fp32 with this optimizer";
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
                "lr_scaling: linear or sqrt",
            ),
            (
                "lookahead_decay",
                self.lookahead_decay.is_some(),
                self.lookahead_steps.is_some(),
                "lookahead_steps",
            ),
            (
                "lookahead_power",
                self.lookahead_power.is_some(),
                self.lookahead_steps.is_some(),
                "lookahead_steps",
            ),
            ("betas", self.betas.is_some(), aux_is(AuxOptimizer::Adamw), "aux: adamw"),
            ("eps", self.eps.is_some(), aux_is(AuxOptimizer::Adamw), "aux: adamw"),
            ("aux_momentum", self.aux_momentum.is_some(), aux_is(AuxOptimizer::Sgd), "aux: sgd"),
        ];
        match goes_with.iter().find(|(_, given, goes, _)| *given && !goes) {
            Some((key, _, _, with)) => {
                Err(Invalid::new(&format!("optimizer.{key}"), format!("goes with {with} only")))
            }
            None => Ok(()),
        }
    }

    /// The defaults before it is known which optimizer it is.
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

    /// With every key set.
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
