//! The families of networks, each with a table of its networks.

pub(super) mod airbench;
mod plain;
mod preact;
mod resnet;
mod resnext;
pub(super) mod vgg;
mod wide;

use super::catalogue::Entry;

/// The tables of all families.
pub(super) const ALL: [&[Entry]; 7] = [
    resnet::NETWORKS,
    plain::NETWORKS,
    vgg::NETWORKS,
    resnext::NETWORKS,
    wide::NETWORKS,
    preact::NETWORKS,
    airbench::NETWORKS,
];
