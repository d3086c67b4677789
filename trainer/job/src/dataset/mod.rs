//! Data sets: finding, downloading and reading images.
//!
//! [`prepare()`] makes sure that the files are there and decides what to load; [`load`] reads the images into
//! memory, or maps them. The environment is not read: the value of [`CIFAR10_DIR`] is an argument.

mod cifar;
mod download;
mod error;
mod fashion_mnist;
mod image_folder;
mod matlab;
mod pixels;
mod prepare;
mod published;
mod svhn;
mod synthetic;

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::config::{Data, Dataset};

pub use crate::config::Normalization;
pub use error::{DataError, Problem};
pub use image_folder::read_image;
pub use pixels::Pixels;
pub use prepare::{Outline, outline, prepare};
pub use published::Published;

/// The environment variable that names the folder with CIFAR-10's `.bin` files, or its parent.
pub const CIFAR10_DIR: &str = "CIFAR10_DIR";

/// Images, as bytes, with their labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Images {
    /// Pixels, `[N, H, W, C]`, 0 to 255.
    pub pixels: Pixels,
    /// Labels, `[N]`, each below the number of classes.
    pub labels: Vec<u16>,
    /// Shape of an image: C, H, W.
    pub shape: [usize; 3],
}

impl Images {
    /// Returns the number of images.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Returns whether there are no images.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }
}

/// A data set in memory, with both splits.
#[derive(Debug, Clone, PartialEq)]
pub struct DataSet {
    /// Name in a configuration.
    pub name: Dataset,
    /// Names of the classes, by label.
    pub classes: Vec<String>,
    /// Training images.
    pub train: Images,
    /// Test images.
    pub test: Images,
    /// Mean and standard deviation of the training pixels, or what the configuration sets instead.
    pub normalization: Normalization,
}

/// The facts about a data set that a network trained on it depends on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Description {
    /// Name in a configuration.
    pub name: Dataset,
    /// Names of the classes, by label.
    pub classes: Vec<String>,
    /// Shape of an image: C, H, W.
    pub shape: [usize; 3],
    /// Normalization that the network was trained with.
    pub normalization: Normalization,
}

impl DataSet {
    /// Returns the facts that a network trained on this data set depends on.
    pub fn describe(&self) -> Description {
        Description {
            name: self.name,
            classes: self.classes.clone(),
            shape: self.train.shape,
            normalization: self.normalization.clone(),
        }
    }

    /// Returns a hash of all pixels and labels, which is equal on ranks that train on the same images.
    pub fn hash(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.name.to_string().as_bytes());
        for images in [&self.train, &self.test] {
            hasher.update(&(images.labels.len() as u64).to_le_bytes());
            for size in images.shape {
                hasher.update(&(size as u64).to_le_bytes());
            }
            let labels: Vec<[u8; 2]> =
                images.labels.iter().map(|label| label.to_le_bytes()).collect();
            hasher.update(labels.as_flattened());
            hasher.update(&images.pixels);
        }
        hasher.finalize()
    }
}

/// What [`load`] has to load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A published data set.
    Published {
        /// The data set.
        published: &'static Published,
        /// Folder with its files.
        folder: PathBuf,
    },
    /// A folder of image files, which have been decoded.
    ImageFolder {
        /// Folder with `train` and `test`.
        root: PathBuf,
        /// Path of the cache with the decoded images.
        cache: PathBuf,
    },
    /// Synthetic images.
    Synthetic {
        /// Why the configured data set is not available, if the images replace it; to be shown as a warning.
        because: Option<String>,
    },
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Published { published, folder } => {
                write!(f, "{} in {}", published.title, folder.display())
            }
            Self::ImageFolder { root, .. } => write!(f, "image files in {}", root.display()),
            Self::Synthetic { .. } => f.write_str("synthetic images, made in memory"),
        }
    }
}

/// Largest number of images to read of each split; `None`: all.
#[derive(Debug, Clone, Copy, Default)]
struct Limits {
    train: Option<usize>,
    test: Option<usize>,
}

/// Loads `source`, at most `data.train_images` and `data.test_images` of it. `data.normalization`, if given,
/// replaces the data set's own, except for synthetic images that replace the configured data set.
///
/// `seed`: seed of synthetic images.
///
/// # Errors
/// [`DataError`], which names the file, the record, the problem, and the ways to obtain the data.
pub fn load(source: &Source, data: &Data, seed: u64) -> Result<DataSet, DataError> {
    let limits = Limits { train: data.train_images, test: data.test_images };
    let loaded = match source {
        Source::Published { published, folder } => (published.load)(folder, limits),
        Source::ImageFolder { cache, .. } => image_folder::load(cache, limits),
        Source::Synthetic { .. } => Ok(synthetic::make(seed, limits)),
    };
    let mut loaded = loaded.map_err(|problem| DataError::new(problem, data.dataset))?;
    let is_substitute = matches!(source, Source::Synthetic { because: Some(_) });
    if let Some(normalization) = data.normalization.as_ref().filter(|_| !is_substitute) {
        loaded.normalization = normalization.clone();
    }
    Ok(loaded)
}
