//! Networks as data: their layers, tensors and costs.
//!
//! The file of a family has a table of its networks. [`Network::new`] makes the layers of one of them, from
//! which all else follows: names and shapes of the state dict, costs, and the trainer's modules. Names and
//! order of tensors are those of the PyTorch module's state dict.

mod blocks;
mod catalogue;
mod families;
mod init;
mod layer;
pub mod names;
mod summary;
mod taps;
mod tensors;
#[cfg(test)]
mod tests;
mod walk;

use crate::config::Model;

pub use catalogue::{Entry, ModelName, ReferenceDataset, catalogue};
pub use init::Init;
pub use layer::{BatchNorm, Conv, Layer, Linear, Residual, Shape};
pub use summary::{LayerSummary, Summary};
pub use taps::Taps;
pub use tensors::{Role, TensorSpec};

/// A network for images of one size.
#[derive(Debug, Clone, PartialEq)]
pub struct Network {
    /// Channels, height and width of an image.
    pub image: [usize; 3],
    /// Number of classes, that is, of logits.
    pub classes: usize,
    /// Layers from image to logits.
    pub layers: Vec<Layer>,
}

impl Network {
    /// Makes the network that `model` names, for images of `image` (channels, height, width).
    pub fn new(model: &Model, image: [usize; 3], classes: usize) -> Self {
        Self { image, classes, layers: model.name.entry().layers(model, image, classes) }
    }

    /// Returns every tensor of the state dict, in its order. Without `live_taps`, all taps of kernels count
    /// as live.
    pub fn tensors(&self, live_taps: bool) -> Vec<TensorSpec> {
        let mut tensors = Vec::new();
        self.visit(|layer, input, _| tensors.extend(tensors::tensors_of(layer, input)));
        if !live_taps {
            tensors.iter_mut().for_each(|tensor| tensor.live = None);
        }
        tensors
    }

    /// Returns the number of trained parameters: PyTorch's count without the fixed ones.
    pub fn parameter_count(&self) -> usize {
        self.parameters().map(|tensor| tensor.len()).sum()
    }

    /// Returns the number of trained parameters that ever see a pixel of an image of this size.
    pub fn live_parameter_count(&self) -> usize {
        self.parameters().map(|tensor| tensor.live_len()).sum()
    }

    fn parameters(&self) -> impl Iterator<Item = TensorSpec> {
        self.tensors(true).into_iter().filter(|tensor| tensor.role.is_parameter())
    }

    /// Returns the number of elements per image that stay in memory for the backward pass: the outputs of all
    /// convolutions, batch norms and max-pools.
    pub fn activations_per_image(&self) -> usize {
        let mut total = 0;
        self.visit(|layer, _, output| {
            if matches!(layer, Layer::Conv(_) | Layer::BatchNorm(_) | Layer::MaxPool { .. }) {
                total += output.len();
            }
        });
        total
    }

    fn visit<'a>(&'a self, mut visit: impl FnMut(&'a Layer, Shape, Shape)) {
        let [channels, height, width] = self.image;
        walk::walk(&self.layers, Shape { channels, map: [height, width] }, &mut visit);
    }
}
