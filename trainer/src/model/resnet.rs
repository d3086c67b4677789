//! ResNet of basic blocks.
//!
//! Source: He et al., Deep Residual Learning for Image Recognition, CVPR 2016; with the notes' stem
//! and shortcut rule, see [`job::network`].

use std::sync::Arc;

use comm::Communicator;
use job::config::Stem;
use job::network::{Block, Network};
use tch::Tensor;

use super::Mode;
use super::layers::{BatchNorm, Conv};
use crate::flat::Flat;

/// A residual network whose tensors are views into a [`Flat`].
pub struct ResNet {
    stem: Stem,
    conv1: Conv,
    bn1: BatchNorm,
    blocks: Vec<BasicBlock>,
    linear_weight: Tensor,
    linear_bias: Tensor,
}

impl ResNet {
    /// Layers over the tensors that `network` describes and `flat` holds.
    pub fn new(network: &Network, flat: &Flat) -> Self {
        let stride = match network.stem {
            Stem::Notes => 2,
            Stem::Cifar => 1,
        };
        Self {
            stem: network.stem,
            conv1: Conv::new(flat, "conv1", stride),
            bn1: BatchNorm::new(flat, "bn1"),
            blocks: network.blocks.iter().map(|block| BasicBlock::new(block, flat)).collect(),
            linear_weight: flat.tensor("linear.weight"),
            linear_bias: flat.tensor("linear.bias"),
        }
    }

    /// From now on, batch norm takes its training statistics over the images of all ranks: every rank
    /// runs forward and backward, also without images.
    pub fn synchronize_batch_norm(&mut self, peers: &Arc<dyn Communicator>) {
        self.bn1.synchronize(peers);
        for block in &mut self.blocks {
            block.bn1.synchronize(peers);
            block.bn2.synchronize(peers);
            if let Some((_, bn)) = &mut block.shortcut {
                bn.synchronize(peers);
            }
        }
    }

    /// Images `[N, C, H, W]` to logits `[N, classes]`.
    pub fn forward(&self, images: &Tensor, mode: Mode) -> Tensor {
        let mut x = self.bn1.forward(&self.conv1.forward(images), mode).relu_();
        if self.stem == Stem::Notes {
            x = x.max_pool2d([3, 3], [2, 2], [1, 1], [1, 1], false);
        }
        for block in &self.blocks {
            x = block.forward(&x, mode);
        }
        x.mean_dim([2i64, 3].as_slice(), false, None)
            .linear(&self.linear_weight, Some(&self.linear_bias))
    }
}

/// Two 3x3 convolutions and the way past them.
struct BasicBlock {
    conv1: Conv,
    bn1: BatchNorm,
    conv2: Conv,
    bn2: BatchNorm,
    shortcut: Option<(Conv, BatchNorm)>,
}

impl BasicBlock {
    fn new(Block { name, stride, .. }: &Block, flat: &Flat) -> Self {
        let part = |suffix: &str| format!("{name}.{suffix}");
        Self {
            conv1: Conv::new(flat, &part("conv1"), *stride),
            bn1: BatchNorm::new(flat, &part("bn1")),
            conv2: Conv::new(flat, &part("conv2"), 1),
            bn2: BatchNorm::new(flat, &part("bn2")),
            shortcut: (*stride != 1).then(|| {
                let conv = Conv::new(flat, &part("shortcut.0"), *stride);
                (conv, BatchNorm::new(flat, &part("shortcut.1")))
            }),
        }
    }

    fn forward(&self, input: &Tensor, mode: Mode) -> Tensor {
        let x = self.bn1.forward(&self.conv1.forward(input), mode).relu_();
        let x = self.bn2.forward(&self.conv2.forward(&x), mode);
        let past = match &self.shortcut {
            Some((conv, bn)) => bn.forward(&conv.forward(input), mode),
            None => input.shallow_clone(),
        };
        (x + past).relu_()
    }
}
