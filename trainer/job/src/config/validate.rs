//! Ranges: what a well-typed configuration may still not say.

use std::fmt::Display;
use std::ops::RangeInclusive;

use super::{BucketCap, CommBackend, Config, Data, Dataset, Model, Optimizer, OptimizerName};

/// A value that is out of range or does not go with another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid {
    /// The key's dotted path.
    pub path: String,
    /// What is wrong, and what would be right.
    pub problem: String,
}

impl Invalid {
    fn new(path: &str, problem: impl Into<String>) -> Self {
        Self { path: path.to_string(), problem: problem.into() }
    }
}

/// Checks all ranges, and that keys go together.
///
/// # Errors
/// The first value that is wrong.
pub fn validate(config: &Config) -> Result<(), Invalid> {
    let Config { train, checkpoint, metrics, comm, .. } = config;
    validate_model(&config.model)?;
    at_least_one("train.epochs", train.epochs as u64)?;
    within("train.batch_size_per_rank", train.batch_size_per_rank, 1..=65536)?;
    within("train.grad_accum_steps", train.grad_accum_steps, 1..=65536)?;
    at_least_one("train.max_steps", train.max_steps.unwrap_or(1))?;
    validate_data(&config.data)?;
    validate_optimizer(&config.optimizer)?;
    if train.sync_batch_norm && comm.backend == CommBackend::None {
        let problem = "needs ranks that communicate; comm.backend is none";
        return Err(Invalid::new("train.sync_batch_norm", problem));
    }
    at_least_one("checkpoint.every_epochs", checkpoint.every_epochs as u64)?;
    at_least_one("checkpoint.keep", checkpoint.keep as u64)?;
    at_least_one("metrics.log_every", metrics.log_every)?;
    if let BucketCap::Mib(mib) = comm.bucket_cap_mib {
        within("comm.bucket_cap_mib", mib, 1..=4096)?;
    }
    within("comm.timeout_seconds", comm.timeout_seconds, 1..=86400)
}

fn validate_model(model: &Model) -> Result<(), Invalid> {
    let (name, entry) = (model.name, model.name.entry());
    below_one("model.stochastic_depth", model.stochastic_depth)?;
    below_one("model.dropout", model.dropout.unwrap_or(0.0))?;
    if model.stochastic_depth > 0.0 && !entry.is_residual() {
        let problem = format!("{name} has no way past its blocks; remove it");
        return Err(Invalid::new("model.stochastic_depth", problem));
    }
    if model.zero_init_residual && !entry.ends_blocks_with_norm() {
        let problem = format!("no block of {name} ends with a batch norm; remove it");
        return Err(Invalid::new("model.zero_init_residual", problem));
    }
    if model.dropout.is_some() && !entry.has_dropout() {
        let problem = format!("{name} has no dropout; remove it, or take a wrn or vgg network");
        return Err(Invalid::new("model.dropout", problem));
    }
    if model.from_torchvision.is_some() && !entry.in_torchvision {
        let problem = format!("torchvision has no {name}; `trainer models` says what it has");
        return Err(Invalid::new("model.from_torchvision", problem));
    }
    Ok(())
}

fn validate_data(data: &Data) -> Result<(), Invalid> {
    let [train, test] = data.dataset.published_images().unwrap_or([10_000_000; 2]);
    within("data.train_images", data.train_images.unwrap_or(1), 1..=train)?;
    within("data.test_images", data.test_images.unwrap_or(1), 1..=test)?;
    within("data.image_size", data.image_size.unwrap_or(32), 8..=1024)?;
    if data.image_size.is_some() && data.dataset != Dataset::ImageFolder {
        let problem = "goes with `dataset: image_folder` only: other data sets have a size";
        return Err(Invalid::new("data.image_size", problem));
    }
    for (index, change) in data.augment.iter().enumerate() {
        if data.augment[..index].contains(change) {
            let path = format!("data.augment[{index}]");
            return Err(Invalid::new(&path, "given twice; each may be given once"));
        }
    }
    match data.root.as_os_str().is_empty() {
        true => Err(Invalid::new("data.root", "empty; expected a folder, as in `data`")),
        false => Ok(()),
    }
}

fn validate_optimizer(optimizer: &Optimizer) -> Result<(), Invalid> {
    let Optimizer { name, lr, weight_decay, clip_grad_norm, betas, eps, momentum, nesterov } =
        optimizer;
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
    let foreign = match name {
        OptimizerName::Adamw => {
            [("momentum", momentum.is_some()), ("nesterov", nesterov.is_some())]
        }
        OptimizerName::Sgd => [("betas", betas.is_some()), ("eps", eps.is_some())],
    };
    let (chosen, other) = match name {
        OptimizerName::Adamw => ("adamw", "sgd"),
        OptimizerName::Sgd => ("sgd", "adamw"),
    };
    if let Some((key, _)) = foreign.iter().find(|(_, given)| *given) {
        return Err(Invalid::new(
            &format!("optimizer.{key}"),
            format!("{chosen} has no `{key}`; remove it, or set optimizer.name to {other}"),
        ));
    }
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

fn below_one(path: &str, value: f64) -> Result<(), Invalid> {
    match (0.0..1.0).contains(&value) {
        true => Ok(()),
        false => Err(Invalid::new(
            path,
            format!("{value} is out of range; expected a number from 0 to below 1"),
        )),
    }
}

fn at_least_one(path: &str, value: u64) -> Result<(), Invalid> {
    match value {
        0 => Err(Invalid::new(path, "0 is out of range; expected 1 or more")),
        _ => Ok(()),
    }
}

fn within<T: PartialOrd + Display>(
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
