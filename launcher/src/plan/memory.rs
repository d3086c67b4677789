//! What a rank needs, about.

use job::config::{Config, OptimizerName, Precision};
use job::network::Network;

const F32_BYTES: usize = size_of::<f32>();

/// Bytes that a rank holds for the job; what libtorch, CUDA and their scratch space take comes on
/// top.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// Weights, fp32.
    pub parameter_bytes: usize,
    /// Gradients, fp32.
    pub gradient_bytes: usize,
    /// The optimizer's state, fp32.
    pub optimizer_bytes: usize,
    /// What the forward pass keeps for the backward pass.
    pub activation_bytes: usize,
    /// Training and test set, one byte a number.
    pub image_bytes: usize,
}

impl Memory {
    /// For `images` images in memory.
    pub fn estimate(config: &Config, network: &Network, images: usize) -> Self {
        let parameter_bytes = network.parameter_count() * F32_BYTES;
        let copies = match config.optimizer.name {
            OptimizerName::Adamw => 2,
            OptimizerName::Sgd => usize::from(config.optimizer.momentum.is_some_and(|m| m > 0.0)),
        };
        let activation_size = match config.precision {
            Precision::Fp32 => F32_BYTES,
            Precision::Bf16 | Precision::Fp16 => 2,
        };
        Self {
            parameter_bytes,
            gradient_bytes: parameter_bytes,
            optimizer_bytes: copies * parameter_bytes,
            activation_bytes: network.activations_per_image()
                * config.train.batch_size_per_rank
                * activation_size,
            image_bytes: images * network.image.iter().product::<usize>(),
        }
    }

    /// All of it.
    pub const fn total_bytes(&self) -> usize {
        self.parameter_bytes
            + self.gradient_bytes
            + self.optimizer_bytes
            + self.activation_bytes
            + self.image_bytes
    }
}
