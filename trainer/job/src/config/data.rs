//! The section `data`: images and augmentation.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::validate::{Invalid, within};
use super::{Augment, Normalization};

/// Images and augmentation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Data {
    /// The data set.
    pub dataset: Dataset,
    /// The folder that holds the files, or into which they are downloaded.
    pub root: PathBuf,
    /// Whether to download missing files.
    pub download: bool,
    /// What to use if the data set is not available.
    pub fallback: Fallback,
    /// Number of training images to use: the first ones, or of `image_folder` evenly spread ones; `null`: all
    /// (10,000 synthetic ones).
    pub train_images: Option<usize>,
    /// Number of test images to use, chosen likewise; `null`: all (2,000 synthetic ones).
    pub test_images: Option<usize>,
    /// For `image_folder`, the side in pixels to which images are resized; `null`: 32.
    pub image_size: Option<usize>,
    /// Mean and standard deviation by which pixels are normalized; `null`: the data set's own.
    pub normalization: Option<Normalization>,
    /// Augmentations of training images; each kind at most once.
    pub augment: Vec<Augment>,
}

impl Default for Data {
    fn default() -> Self {
        Self {
            dataset: Dataset::Cifar10,
            root: PathBuf::from("data"),
            download: true,
            fallback: Fallback::None,
            train_images: None,
            test_images: None,
            image_size: None,
            normalization: None,
            augment: Vec::new(),
        }
    }
}

impl Data {
    /// Checks ranges, and that keys go together.
    pub(super) fn validate(&self) -> Result<(), Invalid> {
        let [train, test] = self.dataset.facts().map_or([10_000_000; 2], |facts| facts.images);
        within("data.train_images", self.train_images.unwrap_or(1), 1..=train)?;
        within("data.test_images", self.test_images.unwrap_or(1), 1..=test)?;
        within("data.image_size", self.image_size.unwrap_or(32), 8..=1024)?;
        if self.image_size.is_some() && self.dataset != Dataset::ImageFolder {
            let problem =
                "is for `dataset: image_folder` only; images of other data sets have a fixed size";
            return Err(Invalid::new("data.image_size", problem));
        }
        if let Some(normalization) = &self.normalization {
            let channels = self.dataset.facts().map_or(3, |facts| facts.shape[0]);
            normalization.validate("data.normalization", channels)?;
        }
        for (index, change) in self.augment.iter().enumerate() {
            let path = format!("data.augment[{index}]");
            if self.augment[..index].iter().any(|before| before.name() == change.name()) {
                return Err(Invalid::new(
                    &path,
                    format!("{} is given twice; keep one", change.name()),
                ));
            }
            change.validate(&path, self.image_side())?;
        }
        match self.root.as_os_str().is_empty() {
            true => Err(Invalid::new("data.root", "empty; expected a folder, as in `data`")),
            false => Ok(()),
        }
    }

    /// Switches to synthetic images because the data set is not available, and resets the keys that do not
    /// apply to these.
    pub fn fall_back(&mut self) {
        self.dataset = Dataset::Synthetic;
        self.image_size = None;
        self.normalization = None;
    }

    /// Returns the height, which is also the width, of the images in pixels.
    fn image_side(&self) -> usize {
        let side = self.dataset.facts().map(|facts| facts.shape[1]);
        side.or(self.image_size).unwrap_or(32)
    }
}

/// A data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dataset {
    /// CIFAR-10: photographs, 10 classes.
    Cifar10,
    /// CIFAR-100: photographs, with their 100 fine labels.
    Cifar100,
    /// Fashion-MNIST: grey images of clothes.
    FashionMnist,
    /// SVHN: photographs of house numbers' digits.
    Svhn,
    /// PNG and JPEG files: `root/train/CLASS/*` and `root/test/CLASS/*`.
    ImageFolder,
    /// Learnable images of 10 classes, 32x32, made from `train.seed` in memory.
    Synthetic,
}

impl fmt::Display for Dataset {
    /// Writes the name of the data set in a configuration, as in `image_folder`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// Facts about a published data set that are known without its files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// Number of training and of test images.
    pub images: [usize; 2],
    /// Shape of an image: C, H, W.
    pub shape: [usize; 3],
    /// Number of classes.
    pub classes: usize,
}

impl Dataset {
    /// Returns the facts about this data set; `None` if its size depends on the user's files or
    /// configuration.
    pub const fn facts(self) -> Option<Facts> {
        let color = Facts { images: [50_000, 10_000], shape: [3, 32, 32], classes: 10 };
        match self {
            Self::Cifar10 => Some(color),
            Self::Cifar100 => Some(Facts { classes: 100, ..color }),
            Self::FashionMnist => {
                Some(Facts { images: [60_000, 10_000], shape: [1, 28, 28], ..color })
            }
            Self::Svhn => Some(Facts { images: [73_257, 26_032], ..color }),
            Self::ImageFolder | Self::Synthetic => None,
        }
    }
}

/// What to use if the data set is not available.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fallback {
    /// Nothing: the run ends with exit code 3.
    None,
    /// Synthetic images, with a warning.
    Synthetic,
}
