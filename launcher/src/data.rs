//! Makes sure that the images of a run are available before any rank is started.

use std::fmt;
use std::path::{Path, PathBuf};

use job::config::{self, Config, Data, Dataset, Fallback};
use job::dataset::{self, CIFAR10_DIR, DataError, Problem, Source};
use job::run_dir::RunDir;

use crate::background::in_background;
use crate::error::LaunchError;

/// Makes sure that the images that `data` configures are available, which may download them, and returns what
/// to load. If synthetic images replace them, `data` is changed accordingly: this is decided once, for all
/// ranks and for launchers that resume the run later. `before` is the configuration of the run that is
/// resumed, if there is one: it keeps the kind of images, real or synthetic, that it began with. The future
/// may be dropped before it is ready.
///
/// # Errors
/// [`LaunchError::Data`] when the images cannot be obtained; [`LaunchError::DataGone`] when synthetic images
/// could replace them, had the run not begun with real ones.
pub async fn prepare(data: &mut Data, before: Option<&Data>) -> Result<Source, LaunchError> {
    let may_fall_back = data.dataset != Dataset::Synthetic && data.fallback == Fallback::Synthetic;
    let was_synthetic = before.map(|before| before.dataset == Dataset::Synthetic);
    let mut wanted = data.clone();
    match was_synthetic {
        Some(true) if may_fall_back => {
            tracing::warn!("resuming with SYNTHETIC images, with which this run began");
            data.fall_back();
            wanted.fall_back();
        }
        Some(false) => wanted.fallback = Fallback::None,
        _ => {}
    }
    let source = match in_background(move || prepare_data(&wanted)).await? {
        Err(error) if may_fall_back && was_synthetic == Some(false) => {
            return Err(LaunchError::DataGone(error));
        }
        other => other?,
    };
    if let Source::Synthetic { because: Some(reason) } = &source {
        tracing::warn!("training on SYNTHETIC images: {reason}");
        data.fall_back();
    }
    Ok(source)
}

/// Returns a hash of all images and labels, in hexadecimal, to be compared between nodes.
///
/// # Errors
/// [`LaunchError::Data`] when they cannot be read.
pub async fn hash(source: &Source, config: &Config) -> Result<String, LaunchError> {
    let (source, data, seed) = (source.clone(), config.data.clone(), config.train.seed);
    let load = move || dataset::load(&source, &data, seed).map(|loaded| loaded.hash());
    Ok(in_background(load).await??.to_hex().to_string())
}

/// Returns the data configuration of the run in `run_dir`, if there is one. A configuration that cannot be
/// read is ignored here; it is reported when the directory is opened.
pub async fn before(run_dir: &Path) -> Result<Option<Data>, LaunchError> {
    let run_dir = RunDir::at(run_dir);
    let read = move || {
        let config = run_dir.holds_run().then(|| config::load(&run_dir.config_path(), &[]));
        config.and_then(Result::ok).map(|config| config.data)
    };
    in_background(read).await
}

fn prepare_data(data: &Data) -> Result<Source, DataError> {
    dataset::prepare(data, cifar10_dir().as_deref())
}

fn cifar10_dir() -> Option<PathBuf> {
    std::env::var_os(CIFAR10_DIR).filter(|folder| !folder.is_empty()).map(PathBuf::from)
}

/// Where the images of a run would come from.
pub enum Outlook {
    /// They are available.
    Here(Source),
    /// They are files in this folder, which has not been looked into.
    Folder(PathBuf),
    /// They are missing and would be downloaded.
    Download {
        /// Name of the data set.
        title: &'static str,
        /// Folder that they are downloaded to.
        root: PathBuf,
        /// Whether synthetic images are used if the download fails.
        or_synthetic: bool,
    },
    /// They are missing, and synthetic images take their place.
    Replaced {
        /// Name of the data set.
        title: &'static str,
    },
    /// They are bad, or missing and must not be downloaded.
    Bad(DataError),
}

impl Outlook {
    /// Looks for the images that `data` configures, without downloading any.
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
                write!(f, "synthetic images: {title} is missing and data.download is false")
            }
            Self::Bad(error) => write!(f, "missing or bad: {error}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use job::ExitCode;

    use super::*;

    /// A data set that is missing, also where `CIFAR10_DIR` is set.
    fn missing(root: &Path) -> Data {
        let (dataset, fallback, root) = (Dataset::Cifar100, Fallback::Synthetic, root.to_owned());
        Data { dataset, root, download: false, fallback, ..Data::default() }
    }

    #[tokio::test]
    async fn a_run_that_fell_back_goes_on_with_synthetic_images() {
        let folder = tempfile::tempdir().unwrap();
        let (mut began, mut goes_on) = (missing(folder.path()), missing(folder.path()));
        prepare(&mut began, None).await.unwrap();
        assert_eq!(began.dataset, Dataset::Synthetic);
        // A file that is wrong would be an error, were it looked at.
        let files = folder.path().join("cifar-100-binary");
        std::fs::create_dir(&files).unwrap();
        std::fs::write(files.join("train.bin"), "wrong").unwrap();
        assert!(prepare(&mut missing(folder.path()), None).await.is_err());
        let source = prepare(&mut goes_on, Some(&began)).await.unwrap();
        assert!(matches!(source, Source::Synthetic { .. }));
        assert_eq!(goes_on, began);
    }

    #[tokio::test]
    async fn a_run_that_began_with_real_images_does_not_fall_back() {
        let folder = tempfile::tempdir().unwrap();
        let began = missing(folder.path());
        let error = prepare(&mut began.clone(), Some(&began)).await.unwrap_err();
        assert_eq!(error.exit_code(), ExitCode::Data, "{error}");
        assert!(error.to_string().starts_with("no CIFAR-100 under"), "{error}");
        assert!(error.to_string().contains("began with these images"), "{error}");
    }
}
