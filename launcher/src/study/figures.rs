//! Checks the figures that a study file describes. Pure.

use std::collections::HashSet;

use job::config::nearest;
use serde_yaml::{Mapping, Value};

use super::expand::Invalid;
use super::file::{FigureEntry, Metric, StudyFile};
use super::planned::Planned;

/// Quantity on the x axis of a figure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum X {
    /// Optimizer updates.
    Step,
    /// Passes over the training set.
    Epoch,
    /// Images per step of all ranks together.
    GlobalBatchSize,
    /// Number of trainable parameters.
    Parameters,
    /// Multiply-adds of the network for one image.
    MultiplyAdds,
    /// Number in the configuration, by its dotted key.
    Key(String),
}

impl X {
    const NAMES: [(&'static str, Self); 5] = [
        ("step", Self::Step),
        ("epoch", Self::Epoch),
        ("global_batch_size", Self::GlobalBatchSize),
        ("parameters", Self::Parameters),
        ("multiply_adds", Self::MultiplyAdds),
    ];

    fn parse(name: &str) -> Result<Self, String> {
        if let Some((_, x)) = Self::NAMES.into_iter().find(|(known, _)| *known == name) {
            return Ok(x);
        }
        if name.contains('.') {
            return Ok(Self::Key(name.to_owned()));
        }
        let known = Self::NAMES.map(|(name, _)| name);
        let hint = nearest(name, known.into_iter());
        let hint = hint.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
        Err(format!("unknown value `{name}`, expected {} or a dotted key{hint}", known.join(", ")))
    }

    /// Returns whether lines follow the epochs of a run, and do not go from run to run.
    pub const fn is_within_run(&self) -> bool {
        matches!(self, Self::Step | Self::Epoch)
    }

    /// Returns the value for a run as a whole; `None` if it changes within a run or the run has none.
    pub fn of_run(&self, run: &Planned) -> Option<f64> {
        match self {
            Self::Step | Self::Epoch => None,
            Self::GlobalBatchSize => Some(run.global_batch_size as f64),
            Self::Parameters => Some(run.parameters as f64),
            Self::MultiplyAdds => Some(run.multiply_adds as f64),
            Self::Key(key) => run.value(key)?.as_f64(),
        }
    }

    /// Returns the label of the axis.
    pub fn label(&self) -> String {
        match self {
            Self::Step => "step".to_owned(),
            Self::Epoch => "epoch".to_owned(),
            Self::GlobalBatchSize => "global batch size".to_owned(),
            Self::Parameters => "parameters".to_owned(),
            Self::MultiplyAdds => "multiply-adds of an image".to_owned(),
            Self::Key(key) => key.clone(),
        }
    }
}

/// Quantity that the metrics on one axis measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quantity {
    /// Error, in percent.
    Error,
    /// Accuracy, in percent.
    Accuracy,
    /// Loss, in nats.
    Loss,
}

impl Metric {
    /// Returns the quantity that the metric measures.
    pub const fn quantity(self) -> Quantity {
        match self {
            Self::TestError | Self::TrainError => Quantity::Error,
            Self::TestAccuracy | Self::TrainAccuracy => Quantity::Accuracy,
            Self::TestLoss | Self::TrainLoss => Quantity::Loss,
        }
    }

    /// Returns the name for use in a text.
    pub const fn name(self) -> &'static str {
        match self {
            Self::TestError => "test error",
            Self::TrainError => "training error",
            Self::TestAccuracy => "test accuracy",
            Self::TrainAccuracy => "training accuracy",
            Self::TestLoss => "test loss",
            Self::TrainLoss => "training loss",
        }
    }
}

/// Checks the figures of `study`, whose runs, in full or reduced size, are `runs`. Returns the x axis of each
/// figure.
///
/// # Errors
/// [`Invalid`] when a figure asks for something that the runs do not have.
pub fn check(study: &StudyFile, runs: &[Planned], reduced: bool) -> Result<Vec<X>, Invalid> {
    let mut names = HashSet::new();
    let mut axes = Vec::new();
    for (index, figure) in study.figures.iter().enumerate() {
        let wrong = |(rest, problem): (Vec<&str>, String)| {
            Invalid::new(&[&["figures", &index.to_string()], rest.as_slice()].concat(), problem)
        };
        let x = check_one(figure, runs, reduced).map_err(wrong)?;
        if !names.insert(figure.name.as_str()) {
            let problem = format!("two figures are called {}", figure.name);
            return Err(wrong((vec!["name"], problem)));
        }
        axes.push(x);
    }
    Ok(axes)
}

/// Checks one figure and returns its x axis. An error is the path to the key within the figure, and what is
/// wrong.
fn check_one<'a>(
    figure: &'a FigureEntry,
    runs: &[Planned],
    reduced: bool,
) -> Result<X, (Vec<&'a str>, String)> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if figure.name.is_empty() || !figure.name.chars().all(plain) {
        let problem = "expected letters, digits, `.`, `_` and `-`: it names files".to_owned();
        return Err((vec!["name"], problem));
    }
    let x = X::parse(&figure.x).map_err(|problem| (vec!["x"], problem))?;
    if !x.is_within_run() && runs.iter().any(|run| x.of_run(run).is_none()) {
        let problem = format!("{} is not a number in the configuration of every run", figure.x);
        return Err((vec!["x"], problem));
    }
    match figure.y.as_slice() {
        [_] => {}
        [a, b] if a.quantity() == b.quantity() => {}
        _ => {
            let problem = "expected one, or two of the same kind, as in [test_error, train_error]";
            return Err((vec!["y"], problem.to_owned()));
        }
    }
    for key in figure.group_by.iter().flatten() {
        known(key, None, runs).map_err(|problem| (vec!["group_by"], problem))?;
    }
    for (key, values) in figure.panels.iter().flat_map(|panel| &panel.only) {
        // The reduced size may leave runs out.
        let values = (!reduced).then_some(values);
        known(key.as_str().unwrap_or_default(), values, runs)
            .map_err(|problem| (vec!["panels"], problem))?;
    }
    Ok(x)
}

/// Checks that some run sets `key`, and that each of `values` is the value of some run.
fn known(key: &str, values: Option<&Value>, runs: &[Planned]) -> Result<(), String> {
    let keys = || runs.iter().flat_map(|run| run.spec.overrides.iter().map(|it| it.key.as_str()));
    if !keys().any(|set| set == key) {
        let hint = nearest(key, keys());
        let hint = hint.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
        return Err(format!("no run of this study sets `{key}`{hint}"));
    }
    let missing = values.into_iter().flat_map(list).find(|value| {
        let has = |run: &Planned| run.value(key).as_ref() == Some(value);
        !runs.iter().any(has)
    });
    missing.map_or(Ok(()), |value| {
        Err(format!("no run of this study has `{key}={}`", job::config::in_one_line(value)))
    })
}

/// Returns the elements of a list; any other value counts as a list of one.
fn list(values: &Value) -> &[Value] {
    match values {
        Value::Sequence(values) => values,
        value => std::slice::from_ref(value),
    }
}

/// Returns whether a panel with the filter `only` shows `run`.
pub fn shows(only: &Mapping, run: &Planned) -> bool {
    only.iter().all(|(key, values)| {
        let value = run.value(key.as_str().unwrap_or_default());
        value.is_some_and(|value| list(values).contains(&value))
    })
}
