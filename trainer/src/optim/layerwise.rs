//! Layer-wise learning rates from the norms of whole tensors, for LARS and LAMB.
//!
//! Values per tensor are elements of a `[tensors]` vector; elementwise work is over flat storage.

use std::ops::Range;

use tch::{Kind, Tensor};

use super::groups::{Factors, decays, slices};
use crate::Result;
use crate::flat::Flat;

/// The parameter tensors of flat storage, in its order. Frozen ones have a learning rate factor of 0.
pub(super) struct Tensors {
    ranges: Vec<Range<usize>>,
    /// Index of the tensor to which each element belongs: `[live]` i32.
    tensor_of: Tensor,
    /// Factor of the learning rate of each tensor: `[tensors]` f32.
    pub lr: Tensor,
    /// Weight decay of each tensor: `[tensors]` f32.
    pub weight_decay: Tensor,
    /// Whether the learning rate of each tensor adapts to norms: `[tensors]` bool.
    adapts: Tensor,
}

impl Tensors {
    pub fn of(config: &job::config::Optimizer, flat: &Flat) -> Self {
        let extents = flat.extents();
        let factors = extents.iter().map(|extent| {
            let frozen = Factors { lr: 0.0, weight_decay: 0.0 };
            Factors::of(config, config.weight_decay, extent.spec).unwrap_or(frozen)
        });
        let factors: Vec<_> = factors.collect();
        let adapts: Vec<_> = extents.iter().map(|extent| decays(config, extent.spec)).collect();
        let tensor_of = extents
            .iter()
            .enumerate()
            .flat_map(|(index, extent)| extent.live.clone().map(move |_| index as i32));
        let tensor_of: Vec<_> = tensor_of.collect();
        let device = flat.parameters.device();
        let numbers = |number: fn(&Factors) -> f64| {
            let numbers: Vec<f32> = factors.iter().map(|factors| number(factors) as f32).collect();
            Tensor::from_slice(&numbers).to_device(device)
        };
        Self {
            lr: numbers(|factors| factors.lr),
            weight_decay: numbers(|factors| factors.weight_decay),
            tensor_of: Tensor::from_slice(&tensor_of).to_device(device),
            adapts: Tensor::from_slice(&adapts).to_device(device),
            ranges: extents.into_iter().map(|extent| extent.live).collect(),
        }
    }

    /// Returns the 2-norm of each tensor of a flat buffer: `[tensors]` f32.
    pub fn norms(&self, buffer: &Tensor) -> Result<Tensor> {
        let norms = self.lr.zeros_like();
        torch_ext::norms(&slices(buffer, &self.ranges), &norms)?;
        Ok(norms)
    }

    /// Expands values per tensor, `[tensors]` f32, to values per element, `[live]` f32.
    pub fn per_element(&self, per_tensor: &Tensor) -> Tensor {
        per_tensor.index_select(0, &self.tensor_of)
    }

    /// Returns `above / below` for tensors that adapt to norms and for which both are above zero, and 1 for
    /// the others.
    pub fn trust_ratios(&self, above: &Tensor, below: &Tensor) -> Tensor {
        let defined = above.gt(0.0).logical_and(&below.gt(0.0)).logical_and(&self.adapts);
        (above / below).where_self(&defined, &Tensor::ones([1], (Kind::Float, above.device())))
    }
}
