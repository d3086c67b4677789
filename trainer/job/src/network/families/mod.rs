//! The families: a table of networks each.

pub(super) mod airbench;
mod plain;
mod preact;
mod resnet;
mod resnext;
pub(super) mod vgg;
mod wide;

use super::catalogue::Entry;

/// Every table.
pub(super) const ALL: [&[Entry]; 7] = [
    resnet::NETWORKS,
    plain::NETWORKS,
    vgg::NETWORKS,
    resnext::NETWORKS,
    wide::NETWORKS,
    preact::NETWORKS,
    airbench::NETWORKS,
];
