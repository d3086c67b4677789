//! Plain networks: those of the ResNet paper without the shortcuts.

use super::super::blocks::{Shortcut, Stages};
use super::super::catalogue::{Architecture, Entry, ReferenceDataset};
use super::super::init::Scheme;
use super::resnet;

const fn plain(name: &'static str, dataset: ReferenceDataset, blocks: &'static [usize]) -> Entry {
    let (stages, scheme) = match dataset {
        ReferenceDataset::Imagenet => (resnet::BASIC, Scheme::Torchvision),
        ReferenceDataset::Cifar => (resnet::CIFAR, Scheme::FanIn),
    };
    Entry {
        name,
        source: "He et al., CVPR 2016",
        dataset,
        in_torchvision: false,
        scheme,
        architecture: Architecture::Stages(Stages { blocks, shortcut: Shortcut::Absent, ..stages }),
    }
}

pub(super) const NETWORKS: &[Entry] = &[
    plain("plain18", ReferenceDataset::Imagenet, &[2, 2, 2, 2]),
    plain("plain34", ReferenceDataset::Imagenet, &[3, 4, 6, 3]),
    plain("plain20", ReferenceDataset::Cifar, &[3; 3]),
    plain("plain32", ReferenceDataset::Cifar, &[5; 3]),
    plain("plain44", ReferenceDataset::Cifar, &[7; 3]),
    plain("plain56", ReferenceDataset::Cifar, &[9; 3]),
];
