//! The images: where they are, getting them there, and reading them.
//!
//! [`prepare`] makes sure that the files are there and decides what to load; [`load`] reads it all
//! into memory, or maps it. Does not read the environment: the value of [`CIFAR10_DIR`] is an argument.

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

/// Images with their labels, as bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Images {
    /// `[N, H, W, C]`, 0 to 255.
    pub pixels: Pixels,
    /// `[N]`, each below the number of classes.
    pub labels: Vec<u16>,
    /// C, H, W.
    pub shape: [usize; 3],
}

impl Images {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }
}

/// A data set, whole.
#[derive(Debug, Clone, PartialEq)]
pub struct DataSet {
    /// Its name in a configuration.
    pub name: Dataset,
    /// The classes' names, by label.
    pub classes: Vec<String>,
    /// What is trained on.
    pub train: Images,
    /// What is evaluated on.
    pub test: Images,
    /// Of the training pixels, or what the configuration has instead.
    pub normalization: Normalization,
}

/// What a network must know of the data set that it was trained on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Description {
    /// Its name in a configuration.
    pub name: Dataset,
    /// The classes' names, by label.
    pub classes: Vec<String>,
    /// C, H, W.
    pub shape: [usize; 3],
    /// What it was trained with.
    pub normalization: Normalization,
}

impl DataSet {
    /// What a network that is trained on it must know of it.
    pub fn describe(&self) -> Description {
        Description {
            name: self.name,
            classes: self.classes.clone(),
            shape: self.train.shape,
            normalization: self.normalization.clone(),
        }
    }

    /// A hash of all pixels and labels: the same on ranks that train on the same images.
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

/// What [`load`] is to load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A published data set.
    Published {
        /// Which one.
        published: &'static Published,
        /// The folder with its files.
        folder: PathBuf,
    },
    /// A folder of image files, decoded.
    ImageFolder {
        /// The folder with `train` and `test`.
        root: PathBuf,
        /// The decoded images.
        cache: PathBuf,
    },
    /// Synthetic images.
    Synthetic {
        /// Why the data set was not to be had, where that was wanted; warn with it.
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

/// How many images to read of each split; `None`: all.
#[derive(Debug, Clone, Copy, Default)]
struct Limits {
    train: Option<usize>,
    test: Option<usize>,
}

/// Loads what `source` says, no more than `data.train_images` and `data.test_images` of it, with
/// `data.normalization` where that is given and the images are those that it is given for.
///
/// `seed`: of synthetic images.
///
/// # Errors
/// [`DataError`], which names file, record, what is wrong, and the ways to get the data.
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
