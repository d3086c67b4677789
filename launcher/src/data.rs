//! The images of a run, as far as the launcher cares: that they are there, before any rank is started.

use std::fmt;
use std::io;
use std::path::PathBuf;

use job::config::{Config, Data, Dataset, Fallback};
use job::dataset::{self, CIFAR10_DIR, DataError, Problem, Source};

use crate::error::LaunchError;

/// Gets the images where they are not there yet. Where synthetic ones are taken instead, that is noted in
/// `data`: decided once, for all ranks, and for those who go on with the run. May be dropped before it is
/// done.
///
/// # Errors
/// [`LaunchError::Data`] when they cannot be had.
pub async fn prepare(data: &mut Data) -> Result<Source, LaunchError> {
    let wanted = data.clone();
    let source = in_background(move || prepare_data(&wanted)).await??;
    if let Source::Synthetic { because: Some(reason) } = &source {
        tracing::warn!("training on SYNTHETIC images: {reason}");
        data.fall_back();
    }
    Ok(source)
}

/// Of all images and labels, to be compared between machines.
///
/// # Errors
/// [`LaunchError::Data`] when they cannot be read.
pub async fn hash(source: &Source, config: &Config) -> Result<String, LaunchError> {
    let (source, data, seed) = (source.clone(), config.data.clone(), config.train.seed);
    let load = move || dataset::load(&source, &data, seed).map(|loaded| loaded.hash());
    Ok(in_background(load).await??.to_hex().to_string())
}

/// On a thread of its own, so that signals and other nodes are heard meanwhile.
async fn in_background<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, LaunchError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(io::Error::other).map_err(LaunchError::system("look at the images"))
}

fn prepare_data(data: &Data) -> Result<Source, DataError> {
    dataset::prepare(data, cifar10_dir().as_deref())
}

fn cifar10_dir() -> Option<PathBuf> {
    std::env::var_os(CIFAR10_DIR).map(PathBuf::from)
}

/// Where the images would come from.
pub enum Outlook {
    /// They are there.
    Here(Source),
    /// They are files in this folder.
    Folder(PathBuf),
    /// They are not there and can be downloaded.
    Download {
        /// Of the data set.
        title: &'static str,
        /// Where to.
        root: PathBuf,
        /// Whether synthetic ones do if that fails.
        or_synthetic: bool,
    },
    /// Synthetic ones take their place.
    Replaced {
        /// Of the data set.
        title: &'static str,
    },
    /// They are bad, or not there and must not be downloaded.
    Bad(DataError),
}

impl Outlook {
    /// Looks, without getting any.
    pub fn new(data: &Data) -> Self {
        if data.dataset == Dataset::ImageFolder {
            return Self::Folder(data.root.clone());
        }
        let or_synthetic = data.fallback == Fallback::Synthetic;
        let local = Data { download: false, fallback: Fallback::None, ..data.clone() };
        match prepare_data(&local) {
            Ok(source) => Self::Here(source),
            Err(DataError { problem: Problem::Missing { title, root }, .. }) if data.download => {
                Self::Download { title, root, or_synthetic }
            }
            Err(DataError { problem: Problem::Missing { title, .. }, .. }) if or_synthetic => {
                Self::Replaced { title }
            }
            Err(error) => Self::Bad(error),
        }
    }
}

impl fmt::Display for Outlook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Here(source) => source.fmt(f),
            Self::Folder(root) => write!(f, "image files in {}", root.display()),
            Self::Download { title, root, or_synthetic } => {
                let otherwise = if *or_synthetic { "; synthetic images if that fails" } else { "" };
                write!(f, "{title}, to be downloaded into {}{otherwise}", root.display())
            }
            Self::Replaced { title } => {
                write!(f, "synthetic images: {title} is not there and data.download is false")
            }
            Self::Bad(error) => write!(f, "missing or bad: {error}"),
        }
    }
}
