//! The families: a table of networks each.

mod plain;
mod preact;
mod resnet;
mod resnext;
pub(super) mod vgg;
mod wide;

use super::catalogue::Entry;

/// Every table.
pub(super) const ALL: [&[Entry]; 6] = [
    resnet::NETWORKS,
    plain::NETWORKS,
    vgg::NETWORKS,
    resnext::NETWORKS,
    wide::NETWORKS,
    preact::NETWORKS,
];
