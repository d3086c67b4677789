//! ResNeXt: Xie et al., Aggregated Residual Transformations for Deep Neural Networks, CVPR 2017; and the
//! wider ResNet that the paper compares it with.

use super::super::blocks::Stages;
use super::super::catalogue::{Architecture, Entry, ReferenceDataset};
use super::super::init::Scheme;
use super::resnet::BOTTLENECK;

const DEPTH_50: &[usize] = &[3, 4, 6, 3];
const DEPTH_101: &[usize] = &[3, 4, 23, 3];

/// Makes a network whose first stage has `groups` paths of `group_width` channels.
const fn imagenet(
    name: &'static str,
    blocks: &'static [usize],
    groups: usize,
    group_width: usize,
) -> Entry {
    let stages = Stages { blocks, groups, width: groups * group_width, ..BOTTLENECK };
    Entry {
        name,
        source: "Xie et al., CVPR 2017",
        dataset: ReferenceDataset::Imagenet,
        in_torchvision: true,
        scheme: Scheme::Torchvision,
        architecture: Architecture::Stages(stages),
    }
}

const fn cifar(name: &'static str, groups: usize) -> Entry {
    Entry {
        dataset: ReferenceDataset::Cifar,
        in_torchvision: false,
        scheme: Scheme::FanOut,
        ..imagenet(name, &[3; 3], groups, 64)
    }
}

pub(super) const NETWORKS: &[Entry] = &[
    imagenet("resnext50_32x4d", DEPTH_50, 32, 4),
    Entry { in_torchvision: false, ..imagenet("resnext101_32x4d", DEPTH_101, 32, 4) },
    imagenet("resnext101_32x8d", DEPTH_101, 32, 8),
    imagenet("resnext101_64x4d", DEPTH_101, 64, 4),
    cifar("resnext29_8x64d", 8),
    cifar("resnext29_16x64d", 16),
    Entry { in_torchvision: false, ..imagenet("resnet101_wider", DEPTH_101, 1, 100) },
];
