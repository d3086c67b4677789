//! Parameters that take a step together: ranges of flat storage with the same factors.
//!
//! A group of all parameters is one range. Where batch norms and biases are a group of their own, ranges
//! alternate, since parameters lie in the order in which backward makes their gradients; a kernel takes
//! all ranges of a group in one call.

use std::ops::Range;

use job::config::Optimizer;
use job::network::{Role, TensorSpec};
use tch::Tensor;

use crate::flat::Flat;

/// Parameters that take a step together.
#[derive(Debug, PartialEq)]
pub(super) struct Group {
    pub factors: Factors,
    /// In the flat buffers of what lives.
    live: Vec<Range<usize>>,
    /// In those of what is dead.
    dead: Vec<Range<usize>>,
}

/// What differs between groups.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Factors {
    /// Multiplies the learning rate.
    pub lr: f64,
    /// Before it is multiplied by the learning rate.
    pub weight_decay: f64,
}

impl Factors {
    /// Those of a parameter; `None` where it is frozen.
    pub fn of(config: &Optimizer, weight_decay: f64, parameter: &TensorSpec) -> Option<Self> {
        if config.freezes(parameter) {
            return None;
        }
        let lr = if parameter.role == Role::NormBias { config.norm_bias_lr_factor } else { 1.0 };
        let weight_decay = if decays(config, parameter) { weight_decay / lr } else { 0.0 };
        Some(Self { lr, weight_decay })
    }
}

/// Whether weight decay, and rates that follow norms, are for this parameter.
pub(super) fn decays(config: &Optimizer, parameter: &TensorSpec) -> bool {
    config.decay_norm_and_bias || parameter.role == Role::Weight
}

impl Group {
    /// The parameters of `flat` that are wanted and not frozen.
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

    /// Its ranges of a buffer of what lives.
    pub fn live(&self, buffer: &Tensor) -> Vec<Tensor> {
        slices(buffer, &self.live)
    }

    /// Its ranges of a buffer of what is dead.
    pub fn dead(&self, buffer: &Tensor) -> Vec<Tensor> {
        slices(buffer, &self.dead)
    }
}

/// Adds `range`, which begins where the last one ends or after that.
fn extend(ranges: &mut Vec<Range<usize>>, range: Range<usize>) {
    match ranges.last_mut() {
        _ if range.is_empty() => {}
        Some(last) if last.end == range.start => last.end = range.end,
        _ => ranges.push(range),
    }
}

/// Parts of a buffer.
pub(super) fn slices(buffer: &Tensor, ranges: &[Range<usize>]) -> Vec<Tensor> {
    ranges.iter().map(|range| slice(buffer, range)).collect()
}

/// A part of a buffer.
pub(super) fn slice(buffer: &Tensor, range: &Range<usize>) -> Tensor {
    buffer.narrow(0, range.start as i64, range.len() as i64)
}
