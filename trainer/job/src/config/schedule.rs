//! How the learning rate changes.

use serde::{Deserialize, Serialize};

use super::Train;
use super::validate::{Invalid, at_least_one, foreign};

/// How the learning rate changes. Keys that a schedule does not have must not be given.
///
/// [`load`](super::load) leaves every key of the chosen schedule set, and every other one `None`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Schedule {
    /// Its shape.
    pub name: ScheduleName,
    /// Steps over which the rate first rises linearly from near 0. What follows a shape over the run
    /// does so over the rest of it.
    pub warmup_steps: u64,
    /// The same in epochs, or parts of one.
    pub warmup_epochs: f64,
    /// Step's: how far the decays are apart, in `unit`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step_size: Option<u64>,
    /// Multistep's: when the rate decays, in `unit`, ascending.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub milestones: Option<Vec<u64>>,
    /// Step's and multistep's, default epochs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unit: Option<Unit>,
    /// Step's and multistep's: what the rate is multiplied by, default 0.1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gamma: Option<f64>,
    /// Cosine's and polynomial's: the rate at the end of the run, default 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_lr: Option<f64>,
    /// Polynomial's: the exponent, default 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub power: Option<f64>,
    /// One-cycle's: the fraction of the run at which the rate is highest, default 0.3.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pct_start: Option<f64>,
    /// One-cycle's: what it starts from, as a part of the highest rate, default 0.04.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_factor: Option<f64>,
    /// One-cycle's: what it ends at, as a part of the highest rate, default 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end_factor: Option<f64>,
    /// When the rate follows the shape of cosine, polynomial or one-cycle, default every step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub update: Option<Update>,
}

impl Schedule {
    /// Whether the rate of a step depends on how long the run is.
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
        let range = |key: &str, value: Option<f64>, good: fn(f64) -> bool, expected: &str| {
            let problem = |value| format!("{value} is out of range; expected {expected}");
            match value.filter(|value| !good(*value)) {
                Some(value) => Err(Invalid::new(&format!("schedule.{key}"), problem(value))),
                None => Ok(()),
            }
        };
        let (above_0, part) = ("a number above 0, at most 1", "a number from 0 to 1");
        range("gamma", self.gamma, |value| value > 0.0 && value <= 1.0, above_0)?;
        range("power", self.power, |value| value > 0.0 && value.is_finite(), "a number above 0")?;
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
            return wrong("given beside warmup_steps; keep one".to_string());
        }
        if *name == ScheduleName::OneCycle && (*warmup_epochs > 0.0 || *warmup_steps > 0) {
            let key = if *warmup_steps > 0 { "warmup_steps" } else { "warmup_epochs" };
            let problem = "one_cycle rises by itself: remove it, and see pct_start";
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

    /// What `step_size` and `milestones` count: as given, else epochs.
    pub fn unit(&self) -> Unit {
        self.unit.unwrap_or(Unit::Epochs)
    }

    /// What the rate is multiplied by: as given, else the default; so are all that follow.
    pub fn gamma(&self) -> f64 {
        self.gamma.unwrap_or(0.1)
    }

    /// The rate at the end of the run.
    pub fn min_lr(&self) -> f64 {
        self.min_lr.unwrap_or(0.0)
    }

    /// The exponent.
    pub fn power(&self) -> f64 {
        self.power.unwrap_or(1.0)
    }

    /// The fraction of the run at which the rate is highest.
    pub fn pct_start(&self) -> f64 {
        self.pct_start.unwrap_or(0.3)
    }

    /// What one cycle starts from, as a part of the highest rate.
    pub fn start_factor(&self) -> f64 {
        self.start_factor.unwrap_or(0.04)
    }

    /// What it ends at, as a part of the highest rate.
    pub fn end_factor(&self) -> f64 {
        self.end_factor.unwrap_or(0.0)
    }

    /// When the rate follows its shape.
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

    /// With every key set.
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

/// A schedule's name.
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
    /// A triangle: up to `optimizer.lr` at `pct_start` of the run, and down again.
    OneCycle,
    /// From `optimizer.lr` to `min_lr` at the end of the run, with `power`.
    Polynomial,
}

impl ScheduleName {
    /// As configurations write it.
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

/// What `step_size` and `milestones` count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Passes over the training set.
    Epochs,
    /// Optimizer steps.
    Steps,
}

/// How often a rate follows its shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Update {
    /// Every optimizer step.
    Step,
    /// At the start of an epoch.
    Epoch,
}
