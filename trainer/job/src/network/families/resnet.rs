//! ResNet: He et al., Deep Residual Learning for Image Recognition, CVPR 2016.

use super::super::blocks::{Block, Order, Shortcut, Stages};
use super::super::catalogue::{Architecture, Entry, ReferenceDataset};
use super::super::init::Scheme;

const SOURCE: &str = "He et al., CVPR 2016";

/// Basic blocks with 64 channels in the first stage.
pub(super) const BASIC: Stages = Stages {
    order: Order::PostActivation,
    block: Block::Basic,
    blocks: &[],
    stem: 64,
    width: 64,
    out: 64,
    groups: 1,
    shortcut: Shortcut::Projection,
    has_dropout: false,
};

/// Bottleneck blocks with 256 output channels in the first stage.
pub(super) const BOTTLENECK: Stages = Stages { block: Block::Bottleneck, out: 256, ..BASIC };

/// The paper's networks for CIFAR-10.
pub(super) const CIFAR: Stages =
    Stages { stem: 16, width: 16, out: 16, shortcut: Shortcut::Padding, ..BASIC };

const fn imagenet(name: &'static str, stages: Stages) -> Entry {
    Entry {
        name,
        source: SOURCE,
        dataset: ReferenceDataset::Imagenet,
        in_torchvision: true,
        scheme: Scheme::Torchvision,
        architecture: Architecture::Stages(stages),
    }
}

const fn cifar(name: &'static str, blocks: &'static [usize]) -> Entry {
    Entry {
        dataset: ReferenceDataset::Cifar,
        in_torchvision: false,
        scheme: Scheme::FanIn,
        ..imagenet(name, Stages { blocks, ..CIFAR })
    }
}

pub(super) const NETWORKS: &[Entry] = &[
    imagenet("resnet18", Stages { blocks: &[2, 2, 2, 2], ..BASIC }),
    imagenet("resnet34", Stages { blocks: &[3, 4, 6, 3], ..BASIC }),
    imagenet("resnet50", Stages { blocks: &[3, 4, 6, 3], ..BOTTLENECK }),
    imagenet("resnet101", Stages { blocks: &[3, 4, 23, 3], ..BOTTLENECK }),
    imagenet("resnet152", Stages { blocks: &[3, 8, 36, 3], ..BOTTLENECK }),
    Entry {
        in_torchvision: false,
        ..imagenet("resnet200", Stages { blocks: &[3, 24, 36, 3], ..BOTTLENECK })
    },
    cifar("resnet20", &[3; 3]),
    cifar("resnet32", &[5; 3]),
    cifar("resnet44", &[7; 3]),
    cifar("resnet56", &[9; 3]),
    cifar("resnet110", &[18; 3]),
];
