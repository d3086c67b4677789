//! The section `schedule`: the learning rate over the run.

use serde::{Deserialize, Serialize};

use super::Train;
use super::validate::{Invalid, at_least_one, foreign, in_range};

/// The learning rate over the run. Keys that the chosen schedule does not have must not be given.
///
/// [`load`](super::load()) sets every key of the chosen schedule and leaves all others `None`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Schedule {
    /// Name of the schedule.
    pub name: ScheduleName,
    /// Steps of warm-up, over which the rate rises linearly from near 0. A schedule that spans the run spans
    /// the steps after warm-up.
    pub warmup_steps: u64,
    /// Length of the warm-up in epochs, or fractions of one, instead of `warmup_steps`.
    pub warmup_epochs: f64,
    /// Step: distance between decays, in `unit`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step_size: Option<u64>,
    /// Multistep: when the rate decays, in `unit`, ascending.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub milestones: Option<Vec<u64>>,
    /// Step and multistep: unit of `step_size` and `milestones`, default epochs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unit: Option<Unit>,
    /// Step and multistep: factor of the rate at each decay, default 0.1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gamma: Option<f64>,
    /// Cosine and polynomial: the rate at the end of the run, default 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_lr: Option<f64>,
    /// Polynomial: the exponent, default 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub power: Option<f64>,
    /// One-cycle: fraction of the run at which the rate peaks, default 0.3.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pct_start: Option<f64>,
    /// One-cycle: initial rate as a fraction of the peak, default 0.04.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_factor: Option<f64>,
    /// One-cycle: final rate as a fraction of the peak, default 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end_factor: Option<f64>,
    /// Cosine, polynomial and one-cycle: how often the rate is updated, default every step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub update: Option<Update>,
}

impl Schedule {
    /// Returns whether the rate at a step depends on the length of the run.
    pub fn depends_on_length(&self) -> bool {
        use ScheduleName::{Cosine, OneCycle, Polynomial};
        matches!(self.name, Cosine | Polynomial | OneCycle)
    }

    /// Checks ranges, and that keys go together.
    pub(super) fn validate(&self, lr: f64, train: &Train) -> Result<(), Invalid> {
        self.only_its_own_keys()?;
        self.validate_warmup(train)?;
        let needs = |what: &str| Err(Invalid::new("schedule.name", what));
        match (self.name, self.step_size, &self.milestones) {
            (ScheduleName::Step, None, _) => needs("step needs `step_size`, as in 30")?,
            (ScheduleName::Multistep, _, None) => {
                needs("multistep needs `milestones`, as in [60, 120, 160]")?;
            }
            _ => {}
        }
        at_least_one("schedule.step_size", self.step_size.unwrap_or(1))?;
        let ascending = |list: &Vec<u64>| {
            list.first().is_some_and(|at| *at > 0) && list.windows(2).all(|pair| pair[0] < pair[1])
        };
        if !self.milestones.as_ref().is_none_or(ascending) {
            let problem = "expected a list of ascending numbers, as in [60, 120, 160]";
            return Err(Invalid::new("schedule.milestones", problem));
        }
        let range = |key: &str, value, good, expected| {
            in_range(&format!("schedule.{key}"), value, good, expected)
        };
        let (above_0, part) = ("a number above 0, at most 1", "a number from 0 to 1");
        range("gamma", self.gamma, |value| value > 0.0 && value <= 1.0, above_0)?;
        range("power", self.power, |value| value > 0.0, "a number above 0")?;
        range("pct_start", self.pct_start, |value| (0.0..=1.0).contains(&value), part)?;
        range("start_factor", self.start_factor, |value| (0.0..=1.0).contains(&value), part)?;
        range("end_factor", self.end_factor, |value| (0.0..=1.0).contains(&value), part)?;
        match self.min_lr.filter(|min_lr| !(0.0..=lr).contains(min_lr)) {
            Some(min_lr) => Err(Invalid::new(
                "schedule.min_lr",
                format!("{min_lr} is out of range; expected a number from 0 to optimizer.lr, {lr}"),
            )),
            None => Ok(()),
        }
    }

    fn validate_warmup(&self, train: &Train) -> Result<(), Invalid> {
        let Self { name, warmup_steps, warmup_epochs, .. } = self;
        let wrong = |problem: String| Err(Invalid::new("schedule.warmup_epochs", problem));
        let longest = train.epochs as f64;
        if !(0.0..=longest).contains(warmup_epochs) {
            return wrong(format!(
                "{warmup_epochs} is out of range; expected 0 to train.epochs, {longest}"
            ));
        }
        if *warmup_epochs > 0.0 && *warmup_steps > 0 {
            return wrong("given together with `warmup_steps`; keep one".to_string());
        }
        if *name == ScheduleName::OneCycle && (*warmup_epochs > 0.0 || *warmup_steps > 0) {
            let key = if *warmup_steps > 0 { "warmup_steps" } else { "warmup_epochs" };
            let problem = "one_cycle has its own warm-up, set by `pct_start`; remove this key";
            return Err(Invalid::new(&format!("schedule.{key}"), problem));
        }
        Ok(())
    }

    fn only_its_own_keys(&self) -> Result<(), Invalid> {
        use ScheduleName::{Cosine, Multistep, OneCycle, Polynomial, Step};
        let keys: [(&str, bool, &[ScheduleName]); 10] = [
            ("step_size", self.step_size.is_some(), &[Step]),
            ("milestones", self.milestones.is_some(), &[Multistep]),
            ("unit", self.unit.is_some(), &[Step, Multistep]),
            ("gamma", self.gamma.is_some(), &[Step, Multistep]),
            ("min_lr", self.min_lr.is_some(), &[Cosine, Polynomial]),
            ("power", self.power.is_some(), &[Polynomial]),
            ("pct_start", self.pct_start.is_some(), &[OneCycle]),
            ("start_factor", self.start_factor.is_some(), &[OneCycle]),
            ("end_factor", self.end_factor.is_some(), &[OneCycle]),
            ("update", self.update.is_some(), &[Cosine, Polynomial, OneCycle]),
        ];
        foreign("schedule", self.name, ScheduleName::as_str, &keys)
    }

    /// Returns the unit of `step_size` and `milestones`: as given, or else its default.
    pub fn unit(&self) -> Unit {
        self.unit.unwrap_or(Unit::Epochs)
    }

    /// Returns the factor of the rate at each decay: as given, or else its default.
    pub fn gamma(&self) -> f64 {
        self.gamma.unwrap_or(0.1)
    }

    /// Returns the rate at the end of the run: as given, or else its default.
    pub fn min_lr(&self) -> f64 {
        self.min_lr.unwrap_or(0.0)
    }

    /// Returns the exponent: as given, or else its default.
    pub fn power(&self) -> f64 {
        self.power.unwrap_or(1.0)
    }

    /// Returns the fraction of the run at which the rate peaks: as given, or else its default.
    pub fn pct_start(&self) -> f64 {
        self.pct_start.unwrap_or(0.3)
    }

    /// Returns the initial rate as a fraction of the peak: as given, or else its default.
    pub fn start_factor(&self) -> f64 {
        self.start_factor.unwrap_or(0.04)
    }

    /// Returns the final rate as a fraction of the peak: as given, or else its default.
    pub fn end_factor(&self) -> f64 {
        self.end_factor.unwrap_or(0.0)
    }

    /// Returns how often the rate is updated: as given, or else its default.
    pub fn update(&self) -> Update {
        self.update.unwrap_or(Update::Step)
    }

    /// Sets the keys of the chosen schedule that are not given to their defaults.
    pub(super) fn fill_in(&mut self) {
        match self.name {
            ScheduleName::Constant => {}
            ScheduleName::Step | ScheduleName::Multistep => {
                self.unit = Some(self.unit());
                self.gamma = Some(self.gamma());
            }
            ScheduleName::Cosine => {
                self.min_lr = Some(self.min_lr());
                self.update = Some(self.update());
            }
            ScheduleName::Polynomial => {
                self.min_lr = Some(self.min_lr());
                self.power = Some(self.power());
                self.update = Some(self.update());
            }
            ScheduleName::OneCycle => {
                self.pct_start = Some(self.pct_start());
                self.start_factor = Some(self.start_factor());
                self.end_factor = Some(self.end_factor());
                self.update = Some(self.update());
            }
        }
    }

    /// Returns a schedule with every key set, for the list of known keys.
    pub(super) fn with_every_key() -> Self {
        Self {
            step_size: Some(0),
            milestones: Some(Vec::new()),
            unit: Some(Unit::Epochs),
            gamma: Some(0.0),
            min_lr: Some(0.0),
            power: Some(0.0),
            pct_start: Some(0.0),
            start_factor: Some(0.0),
            end_factor: Some(0.0),
            update: Some(Update::Step),
            ..Self::default()
        }
    }
}

/// Name of a schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleName {
    /// Always `optimizer.lr`.
    #[default]
    Constant,
    /// Multiplied by `gamma` every `step_size`.
    Step,
    /// Multiplied by `gamma` at each of `milestones`.
    Multistep,
    /// Half a cosine from `optimizer.lr` to `min_lr` at the end of the run.
    Cosine,
    /// Linear from `start_factor` of `optimizer.lr` up to all of it at `pct_start` of the run, and linear
    /// down to `end_factor`.
    OneCycle,
    /// Polynomial decay of exponent `power` from `optimizer.lr` to `min_lr` at the end of the run.
    Polynomial,
}

impl ScheduleName {
    /// Returns the name in a configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Constant => "constant",
            Self::Step => "step",
            Self::Multistep => "multistep",
            Self::Cosine => "cosine",
            Self::OneCycle => "one_cycle",
            Self::Polynomial => "polynomial",
        }
    }
}

/// Unit of `step_size` and `milestones`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Passes over the training set.
    Epochs,
    /// Optimizer steps.
    Steps,
}

/// How often the learning rate is updated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Update {
    /// At every optimizer step.
    Step,
    /// At the start of each epoch.
    Epoch,
}
