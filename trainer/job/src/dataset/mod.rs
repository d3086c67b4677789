//! The images: where they are, getting them there, and reading them.
//!
//! [`prepare`] makes sure that the files are there and decides what to load; [`load`] reads it all
//! into memory. Does not read the environment: the value of [`CIFAR10_DIR`] is an argument.

mod cifar10;
mod download;
mod error;
mod prepare;
mod synthetic;

use std::path::PathBuf;

use crate::config::Data;

pub use error::DataError;
pub use prepare::prepare;

/// The environment variable that names the folder with CIFAR-10's `.bin` files, or its parent.
pub const CIFAR10_DIR: &str = "CIFAR10_DIR";

/// Images with their labels, as bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Images {
    /// `[N, C, H, W]`, 0 to 255.
    pub pixels: Vec<u8>,
    /// `[N]`, each below the number of classes.
    pub labels: Vec<u8>,
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

/// A data set, whole, in memory.
#[derive(Debug, Clone, PartialEq)]
pub struct DataSet {
    /// Its name in a configuration.
    pub name: &'static str,
    /// The classes' names, by label.
    pub classes: Vec<String>,
    /// What is trained on.
    pub train: Images,
    /// What is evaluated on.
    pub test: Images,
    /// Mean of the training pixels by channel, of 0 to 1.
    pub mean: [f32; 3],
    /// Standard deviation of the training pixels by channel, of 0 to 1.
    pub std: [f32; 3],
}

impl DataSet {
    /// A hash of all pixels and labels: the same on ranks that train on the same images.
    pub fn hash(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.name.as_bytes());
        for images in [&self.train, &self.test] {
            hasher.update(&(images.labels.len() as u64).to_le_bytes());
            for size in images.shape {
                hasher.update(&(size as u64).to_le_bytes());
            }
            hasher.update(&images.labels);
            hasher.update(&images.pixels);
        }
        hasher.finalize()
    }
}

/// What [`load`] is to load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// CIFAR-10.
    Cifar10 {
        /// The folder with the `.bin` files.
        folder: PathBuf,
    },
    /// Synthetic images.
    Synthetic {
        /// Why CIFAR-10 was not to be had, where that was wanted; warn with it.
        because: Option<String>,
    },
}

/// Loads what `source` says, no more than `data.train_images` and `data.test_images` of it.
///
/// `seed`: of synthetic images.
///
/// # Errors
/// [`DataError`], which names file, record, what is wrong, and the ways to get the data.
pub fn load(source: &Source, data: &Data, seed: u64) -> Result<DataSet, DataError> {
    match source {
        Source::Cifar10 { folder } => cifar10::load(folder, data.train_images, data.test_images),
        Source::Synthetic { .. } => Ok(synthetic::make(seed, data.train_images, data.test_images)),
    }
}
