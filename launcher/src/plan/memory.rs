//! Estimate of the memory that a rank needs.

use job::config::{AuxOptimizer, Config, Optimizer, OptimizerName, Precision};
use job::network::Network;

const F32_BYTES: usize = size_of::<f32>();

/// Bytes that a rank holds for the job, estimated. What libtorch, CUDA and their scratch space take comes on
/// top.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// Weights, fp32.
    pub parameter_bytes: usize,
    /// Gradients, fp32.
    pub gradient_bytes: usize,
    /// The optimizer's state, fp32.
    pub optimizer_bytes: usize,
    /// Activations that the forward pass keeps for the backward pass.
    pub activation_bytes: usize,
    /// Training and test set, one byte per channel of a pixel.
    pub image_bytes: usize,
}

impl Memory {
    /// Estimates the memory of a rank that holds `images` images, `microbatch_size` of which pass through the
    /// network at once.
    pub fn estimate(
        config: &Config,
        network: &Network,
        images: usize,
        microbatch_size: usize,
    ) -> Self {
        let parameter_bytes = network.parameter_count() * F32_BYTES;
        let activation_size = match config.precision {
            // `Auto` may turn out as bf16 or fp32: take the larger.
            Precision::Auto | Precision::Fp32 => F32_BYTES,
            Precision::Bf16 | Precision::Fp16 => 2,
        };
        Self {
            parameter_bytes,
            gradient_bytes: parameter_bytes,
            optimizer_bytes: state_copies(&config.optimizer) * parameter_bytes,
            activation_bytes: network.activations_per_image() * microbatch_size * activation_size,
            image_bytes: images * network.image.iter().product::<usize>(),
        }
    }

    /// Returns the sum of all parts.
    pub const fn total_bytes(&self) -> usize {
        self.parameter_bytes
            + self.gradient_bytes
            + self.optimizer_bytes
            + self.activation_bytes
            + self.image_bytes
    }
}

/// Returns how many numbers the optimizer keeps for each parameter.
fn state_copies(optimizer: &Optimizer) -> usize {
    let rule = match (optimizer.name, optimizer.aux) {
        (OptimizerName::Adamw | OptimizerName::Lamb, _) => 2,
        (OptimizerName::Muon, Some(AuxOptimizer::Sgd)) => 2,
        (OptimizerName::Muon, _) => 3,
        (OptimizerName::Sgd | OptimizerName::Lars, _) => {
            usize::from(optimizer.momentum.is_some_and(|momentum| momentum > 0.0))
        }
    };
    rule + usize::from(optimizer.lookahead_steps.is_some())
}
