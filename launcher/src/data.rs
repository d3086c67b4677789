//! The images of a run, as far as the launcher cares: that they are there, before any rank is started.

use std::path::PathBuf;

use job::config::{Config, Data, Dataset, Fallback};
use job::dataset::{self, CIFAR10_DIR, DataError, Problem, Source};

/// Gets the images where they are not there yet. Where synthetic ones are taken instead, that is noted in
/// `config`: decided once, for all ranks, and for those who go on with the run.
///
/// # Errors
/// [`DataError`] when they cannot be had.
pub fn prepare(config: &mut Config) -> Result<Source, DataError> {
    let source = prepare_data(&config.data)?;
    if let Source::Synthetic { because: Some(reason) } = &source {
        tracing::warn!("training on SYNTHETIC images: {reason}");
        config.data.fall_back();
    }
    Ok(source)
}

/// Of all images and labels, to be compared between machines.
///
/// # Errors
/// [`DataError`] when they cannot be read.
pub fn hash(source: &Source, config: &Config) -> Result<String, DataError> {
    let data_set = dataset::load(source, &config.data, config.train.seed)?;
    Ok(data_set.hash().to_hex().to_string())
}

fn prepare_data(data: &Data) -> Result<Source, DataError> {
    dataset::prepare(data, cifar10_dir().as_deref())
}

fn cifar10_dir() -> Option<PathBuf> {
    std::env::var_os(CIFAR10_DIR).map(PathBuf::from)
}

/// Where the images would come from, without getting any.
pub fn describe(data: &Data) -> String {
    if data.dataset == Dataset::ImageFolder {
        return format!("image files in {}", data.root.display());
    }
    let local = Data { download: false, fallback: Fallback::None, ..data.clone() };
    let problem = match prepare_data(&local) {
        Ok(source) => return source.to_string(),
        Err(DataError { problem: Problem::Missing { title, root }, .. }) if data.download => {
            let otherwise = match data.fallback {
                Fallback::None => "",
                Fallback::Synthetic => "; synthetic images if that fails",
            };
            return format!("{title}, to be downloaded into {}{otherwise}", root.display());
        }
        Err(DataError { problem: Problem::Missing { title, .. }, .. })
            if data.fallback == Fallback::Synthetic =>
        {
            return format!("synthetic images: {title} is not there and data.download is false");
        }
        Err(problem) => problem,
    };
    format!("missing or bad: {problem}")
}
