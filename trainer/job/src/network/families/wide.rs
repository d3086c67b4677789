//! Wide residual networks: Zagoruyko and Komodakis, BMVC 2016; and torchvision's wide ResNets.

use super::super::blocks::{Block, Order, Shortcut, Stages};
use super::super::catalogue::{Architecture, Entry, ReferenceDataset};
use super::super::init::Scheme;
use super::resnet::BOTTLENECK;

const SOURCE: &str = "Zagoruyko & Komodakis, BMVC 2016";

/// Makes WRN-`6 * blocks + 4`-`factor`.
const fn cifar(name: &'static str, blocks: &'static [usize], factor: usize) -> Entry {
    let stages = Stages {
        order: Order::PreActivation,
        block: Block::Basic,
        blocks,
        stem: 16,
        width: 16 * factor,
        out: 16 * factor,
        groups: 1,
        shortcut: Shortcut::Projection,
        has_dropout: true,
    };
    Entry {
        name,
        source: SOURCE,
        dataset: ReferenceDataset::Cifar,
        in_torchvision: false,
        scheme: Scheme::FanOut,
        architecture: Architecture::Stages(stages),
    }
}

const fn imagenet(name: &'static str, blocks: &'static [usize]) -> Entry {
    Entry {
        name,
        source: SOURCE,
        dataset: ReferenceDataset::Imagenet,
        in_torchvision: true,
        scheme: Scheme::Torchvision,
        architecture: Architecture::Stages(Stages { blocks, width: 128, ..BOTTLENECK }),
    }
}

pub(super) const NETWORKS: &[Entry] = &[
    cifar("wrn16_8", &[2; 3], 8),
    cifar("wrn28_10", &[4; 3], 10),
    imagenet("wide_resnet50_2", &[3, 4, 6, 3]),
    imagenet("wide_resnet101_2", &[3, 4, 23, 3]),
];
