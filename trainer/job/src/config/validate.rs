//! Checks of value ranges, and of combinations of keys.

use std::fmt::Display;
use std::ops::RangeInclusive;

use super::{BucketCap, CommBackend, Config};

/// A value that is out of range, or does not fit another key or the ranks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {problem}")]
pub struct Invalid {
    /// Dotted path of the key.
    pub path: String,
    /// What is wrong, and what would be right.
    pub problem: String,
}

impl Invalid {
    pub(super) fn new(path: &str, problem: impl Into<String>) -> Self {
        Self { path: path.to_string(), problem: problem.into() }
    }
}

/// Checks all ranges and combinations of keys.
///
/// # Errors
/// The first invalid value.
pub fn validate(config: &Config) -> Result<(), Invalid> {
    let Config { train, checkpoint, metrics, comm, .. } = config;
    config.model.validate()?;
    train.validate()?;
    config.data.validate()?;
    config.eval.validate()?;
    config.optimizer.validate(&config.model, config.precision)?;
    config.schedule.validate(config.optimizer.lr, train)?;
    if train.sync_batch_norm && comm.backend == CommBackend::None {
        let problem = "needs ranks that communicate; comm.backend is none";
        return Err(Invalid::new("train.sync_batch_norm", problem));
    }
    at_least_one("checkpoint.every_epochs", checkpoint.every_epochs as u64)?;
    at_least_one("checkpoint.keep", checkpoint.keep as u64)?;
    within("checkpoint.retry_minutes", checkpoint.retry_minutes, 0..=10_080)?;
    at_least_one("metrics.log_every", metrics.log_every)?;
    if let BucketCap::Mib(mib) = comm.bucket_cap_mib {
        within("comm.bucket_cap_mib", mib, 1..=4096)?;
    }
    within("comm.timeout_seconds", comm.timeout_seconds, 1..=86400)
}

pub(super) fn below_one(path: &str, value: f64) -> Result<(), Invalid> {
    match (0.0..1.0).contains(&value) {
        true => Ok(()),
        false => Err(Invalid::new(
            path,
            format!("{value} is out of range; expected a number from 0 to below 1"),
        )),
    }
}

pub(super) fn at_least_one(path: &str, value: u64) -> Result<(), Invalid> {
    match value {
        0 => Err(Invalid::new(path, "0 is out of range; expected 1 or more")),
        _ => Ok(()),
    }
}

pub(super) fn within<T: PartialOrd + Display>(
    path: &str,
    value: T,
    range: RangeInclusive<T>,
) -> Result<(), Invalid> {
    if range.contains(&value) {
        return Ok(());
    }
    let (low, high) = range.into_inner();
    Err(Invalid::new(path, format!("{value} is out of range; expected {low} to {high}")))
}

/// Checks a number that is not given, or is finite and `good`, which `expected` describes.
pub(super) fn in_range(
    path: &str,
    value: Option<f64>,
    good: fn(f64) -> bool,
    expected: &str,
) -> Result<(), Invalid> {
    match value.filter(|value| !(good(*value) && value.is_finite())) {
        Some(value) => {
            Err(Invalid::new(path, format!("{value} is out of range; expected {expected}")))
        }
        None => Ok(()),
    }
}

/// Refuses keys of `section` that are given but do not belong to `chosen`. `keys`: for each its name, whether
/// it is given, and which choices of `section.name` have it.
pub(super) fn foreign<T: Copy + PartialEq>(
    section: &str,
    chosen: T,
    name: fn(T) -> &'static str,
    keys: &[(&str, bool, &[T])],
) -> Result<(), Invalid> {
    let wrong = keys.iter().find(|(_, given, owners)| *given && !owners.contains(&chosen));
    let Some((key, _, owners)) = wrong else { return Ok(()) };
    let owners: Vec<_> = owners.iter().map(|owner| name(*owner)).collect();
    let (chosen, owners) = (name(chosen), owners.join(" or "));
    Err(Invalid::new(
        &format!("{section}.{key}"),
        format!("{chosen} has no `{key}`; remove this key, or set {section}.name to {owners}"),
    ))
}
