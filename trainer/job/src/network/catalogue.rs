//! The catalogue of networks, by name.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::blocks::{Maker, Order, Shortcut, Stages};
use super::families::{self, airbench, vgg};
use super::init::Scheme;
use super::layer::Layer;
use crate::config::{Model, Stem, nearest};

/// A network of the catalogue.
#[derive(Debug)]
pub struct Entry {
    /// Name of the network: torchvision's, if torchvision has it.
    pub name: &'static str,
    /// Publication of the network.
    pub source: &'static str,
    /// Data set that the network was published for.
    pub dataset: ReferenceDataset,
    /// Whether torchvision has the network.
    pub in_torchvision: bool,
    pub(super) scheme: Scheme,
    pub(super) architecture: Architecture,
}

/// The data set that a network was published for, with its stem, images and classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReferenceDataset {
    /// ImageNet: 224x224, 1000 classes.
    Imagenet,
    /// CIFAR-10: 32x32, 10 classes.
    Cifar,
}

impl ReferenceDataset {
    /// Returns the stem for this data set.
    pub const fn stem(self) -> Stem {
        match self {
            Self::Imagenet => Stem::Imagenet,
            Self::Cifar => Stem::Cifar,
        }
    }

    /// Returns the height and width of an image.
    pub const fn image(self) -> usize {
        match self {
            Self::Imagenet => 224,
            Self::Cifar => 32,
        }
    }

    /// Returns the number of classes.
    pub const fn classes(self) -> usize {
        match self {
            Self::Imagenet => 1000,
            Self::Cifar => 10,
        }
    }
}

/// The architecture of a network, with its sizes.
#[derive(Debug)]
pub(super) enum Architecture {
    Stages(Stages),
    Vgg(vgg::Vgg),
    Airbench(airbench::Airbench),
}

impl Entry {
    pub(super) fn layers(&self, model: &Model, image: [usize; 3], classes: usize) -> Vec<Layer> {
        // Torchvision has the `imagenet` stem only; with the other stems, weights are initialized as in the
        // notes' module.
        let scheme = match self.scheme {
            Scheme::Torchvision if model.stem != Stem::Imagenet => Scheme::Default,
            scheme => scheme,
        };
        let maker = Maker { model, scheme };
        match &self.architecture {
            Architecture::Stages(stages) => stages.layers(&maker, image[0], classes),
            Architecture::Vgg(vgg) => vgg.layers(&maker, image, classes),
            Architecture::Airbench(airbench) => airbench.layers(&maker, image, classes),
        }
    }

    /// Returns whether the network has shortcuts, so that its blocks can be skipped.
    pub fn is_residual(&self) -> bool {
        matches!(&self.architecture, Architecture::Stages(stages) if stages.shortcut != Shortcut::Absent)
    }

    /// Returns whether each block ends with a batch norm, whose scale can start at 0.
    pub fn ends_blocks_with_norm(&self) -> bool {
        let post = |stages: &Stages| stages.order == Order::PostActivation;
        self.is_residual()
            && matches!(&self.architecture, Architecture::Stages(stages) if post(stages))
    }

    /// Returns whether the network's paper has dropout.
    pub fn has_dropout(&self) -> bool {
        match &self.architecture {
            Architecture::Vgg(_) => true,
            Architecture::Stages(stages) => stages.has_dropout,
            Architecture::Airbench(_) => false,
        }
    }

    /// Returns whether the network has a stem of its own, whatever the configuration says.
    pub fn has_own_stem(&self) -> bool {
        matches!(&self.architecture, Architecture::Airbench(_))
    }
}

/// Returns all networks, family by family.
pub fn catalogue() -> impl Iterator<Item = &'static Entry> {
    families::ALL.iter().copied().flatten()
}

/// The name of a network of the catalogue.
#[derive(Clone, Copy)]
pub struct ModelName(&'static Entry);

impl ModelName {
    /// Returns the network's entry in the catalogue.
    pub const fn entry(self) -> &'static Entry {
        self.0
    }

    /// Returns the name in a configuration.
    pub const fn as_str(self) -> &'static str {
        self.0.name
    }
}

impl From<&'static Entry> for ModelName {
    fn from(entry: &'static Entry) -> Self {
        Self(entry)
    }
}

impl Default for ModelName {
    /// Returns the first network of the catalogue, `resnet18`.
    fn default() -> Self {
        Self(&families::ALL[0][0])
    }
}

impl PartialEq for ModelName {
    fn eq(&self, other: &Self) -> bool {
        self.0.name == other.0.name
    }
}

impl Eq for ModelName {}

impl fmt::Debug for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.name)
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.name)
    }
}

impl FromStr for ModelName {
    type Err = UnknownModel;

    fn from_str(name: &str) -> Result<Self, UnknownModel> {
        let found = catalogue().find(|entry| entry.name == name);
        found.map(Self).ok_or_else(|| UnknownModel(name.to_owned()))
    }
}

/// The error that no network has this name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownModel(String);

impl fmt::Display for UnknownModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Of equally similar names `nearest` takes the last, hence the reversed order: the first family wins.
        let names: Vec<_> = catalogue().map(|entry| entry.name).collect();
        let near = nearest(&self.0, names.into_iter().rev());
        let hint = near.map(|near| format!(" did you mean `{near}`?")).unwrap_or_default();
        write!(f, "unknown network `{}`;{hint} `trainer models` lists them all", self.0)
    }
}

impl std::error::Error for UnknownModel {}

impl Serialize for ModelName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0.name)
    }
}

impl<'de> Deserialize<'de> for ModelName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}
