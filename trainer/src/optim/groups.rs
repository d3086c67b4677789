//! Parameter groups: ranges of flat storage with the same learning rate factor and weight decay.
//!
//! A group of all parameters is one range. If batch norms and biases are a separate group, the ranges of
//! groups alternate, since parameters lie in the order in which backward computes their gradients; a kernel
//! processes all ranges of a group in one call.

use std::ops::Range;

use job::config::Optimizer;
use job::network::{Role, TensorSpec};
use tch::Tensor;

use crate::flat::Flat;

/// Parameters that are updated together.
#[derive(Debug, PartialEq)]
pub(super) struct Group {
    pub factors: Factors,
    /// The group's ranges in buffers of the layout `[live]`.
    live: Vec<Range<usize>>,
    /// The group's ranges in buffers of the layout `[dead]`.
    dead: Vec<Range<usize>>,
}

/// The settings that differ between groups.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Factors {
    /// Factor of the learning rate.
    pub lr: f64,
    /// Weight decay, before multiplication by the group's learning rate. It is already divided by `lr`, so
    /// that the factor does not change the decay.
    pub weight_decay: f64,
}

impl Factors {
    /// Returns the factors of a parameter, or `None` if it is frozen.
    pub fn of(config: &Optimizer, weight_decay: f64, parameter: &TensorSpec) -> Option<Self> {
        if config.freezes(parameter) {
            return None;
        }
        let lr = if parameter.role == Role::NormBias { config.norm_bias_lr_factor } else { 1.0 };
        let weight_decay = if decays(config, parameter) { weight_decay / lr } else { 0.0 };
        Some(Self { lr, weight_decay })
    }
}

/// Returns whether weight decay and layer-wise learning rates apply to this parameter.
pub(super) fn decays(config: &Optimizer, parameter: &TensorSpec) -> bool {
    config.decay_norm_and_bias || parameter.role == Role::Weight
}

impl Group {
    /// Returns the groups of the parameters of `flat` that are `wanted` and not frozen.
    pub fn all(
        config: &Optimizer,
        weight_decay: f64,
        flat: &Flat,
        wanted: impl Fn(&TensorSpec) -> bool,
    ) -> Vec<Self> {
        let mut groups: Vec<Self> = Vec::new();
        for extent in flat.extents().into_iter().filter(|extent| wanted(extent.spec)) {
            let Some(factors) = Factors::of(config, weight_decay, extent.spec) else { continue };
            let known = groups.iter().position(|group| group.factors == factors);
            let index = known.unwrap_or_else(|| {
                groups.push(Self { factors, live: Vec::new(), dead: Vec::new() });
                groups.len() - 1
            });
            extend(&mut groups[index].live, extent.live);
            extend(&mut groups[index].dead, extent.dead);
        }
        groups
    }

    /// Returns views of the group's ranges of a `[live]` buffer.
    pub fn live(&self, buffer: &Tensor) -> Vec<Tensor> {
        slices(buffer, &self.live)
    }

    /// Returns views of the group's ranges of a `[dead]` buffer.
    pub fn dead(&self, buffer: &Tensor) -> Vec<Tensor> {
        slices(buffer, &self.dead)
    }
}

/// Appends `range`, which does not begin before the last one ends, and merges it with the last one if they
/// are adjacent.
fn extend(ranges: &mut Vec<Range<usize>>, range: Range<usize>) {
    match ranges.last_mut() {
        _ if range.is_empty() => {}
        Some(last) if last.end == range.start => last.end = range.end,
        _ => ranges.push(range),
    }
}

/// Returns views of `ranges` of a buffer.
pub(super) fn slices(buffer: &Tensor, ranges: &[Range<usize>]) -> Vec<Tensor> {
    ranges.iter().map(|range| slice(buffer, range)).collect()
}

/// Returns a view of `range` of a buffer.
pub(super) fn slice(buffer: &Tensor, range: &Range<usize>) -> Tensor {
    buffer.narrow(0, range.start as i64, range.len() as i64)
}
