//! Networks as data: their layers, the tensors they hold, and what they cost.
//!
//! A family's file has a table of its networks; [`Network::new`] makes layers from a line of it, and
//! all else follows from those: names and shapes of the state dict, costs, and the trainer's modules.
//! Names and order of tensors are those of the PyTorch module's state dict.

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

pub use catalogue::{Entry, Home, ModelName, catalogue};
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
    /// Outputs.
    pub classes: usize,
    /// From image to logits.
    pub layers: Vec<Layer>,
}

impl Network {
    /// The network that a configuration names, for images of `image` (channels, height, width).
    pub fn new(model: &Model, image: [usize; 3], classes: usize) -> Self {
        Self { image, classes, layers: model.name.entry().layers(model, image, classes) }
    }

    /// Every tensor of the state dict, in its order. `live_taps`: whether to tell taps that see
    /// pixels from those that do not.
    pub fn tensors(&self, live_taps: bool) -> Vec<TensorSpec> {
        let mut tensors = Vec::new();
        self.visit(|layer, input, _| tensors.extend(tensors::tensors_of(layer, input)));
        if !live_taps {
            tensors.iter_mut().for_each(|tensor| tensor.live = None);
        }
        tensors
    }

    /// Numbers that training changes: what PyTorch's module counts as parameters, but for fixed ones.
    pub fn parameter_count(&self) -> usize {
        self.parameters().map(|tensor| tensor.len()).sum()
    }

    /// Those of them that ever see a pixel of an image of this size.
    pub fn live_parameter_count(&self) -> usize {
        self.parameters().map(|tensor| tensor.live_len()).sum()
    }

    fn parameters(&self) -> impl Iterator<Item = TensorSpec> {
        self.tensors(true).into_iter().filter(|tensor| tensor.role.is_parameter())
    }

    /// Numbers that one image leaves in memory for the backward pass: the output of every
    /// convolution, of its batch norm, and of max-pools.
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
