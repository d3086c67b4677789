//! Pre-activation ResNets: He et al., Identity Mappings in Deep Residual Networks, ECCV 2016.

use super::super::blocks::{Block, Order, Shortcut, Stages};
use super::super::catalogue::{Architecture, Entry, ReferenceDataset};
use super::super::init::Scheme;

/// Basic blocks with 16 channels in the first stage.
const BASIC: Stages = Stages {
    order: Order::PreActivation,
    block: Block::Basic,
    blocks: &[],
    stem: 16,
    width: 16,
    out: 16,
    groups: 1,
    shortcut: Shortcut::Projection,
    has_dropout: false,
};

/// Bottleneck blocks with 64 output channels in the first stage.
const BOTTLENECK: Stages = Stages { block: Block::Bottleneck, out: 64, ..BASIC };

const fn cifar(name: &'static str, stages: Stages) -> Entry {
    Entry {
        name,
        source: "He et al., ECCV 2016",
        dataset: ReferenceDataset::Cifar,
        in_torchvision: false,
        scheme: Scheme::FanOut,
        architecture: Architecture::Stages(stages),
    }
}

pub(super) const NETWORKS: &[Entry] = &[
    cifar(
        "preact_resnet18",
        Stages { blocks: &[2, 2, 2, 2], stem: 64, width: 64, out: 64, ..BASIC },
    ),
    cifar("preact_resnet110", Stages { blocks: &[18; 3], ..BASIC }),
    cifar("preact_resnet164", Stages { blocks: &[18; 3], ..BOTTLENECK }),
    cifar("preact_resnet1001", Stages { blocks: &[111; 3], ..BOTTLENECK }),
];
