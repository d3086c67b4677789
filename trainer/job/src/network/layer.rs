//! What networks are made of.

use super::init::Init;

/// One step from images to logits.
#[derive(Debug, Clone, PartialEq)]
pub enum Layer {
    /// A convolution.
    Conv(Conv),
    /// Batch norm over channels.
    BatchNorm(BatchNorm),
    /// The larger of a number and 0.
    Relu,
    /// Max-pool with a square window.
    MaxPool {
        /// Height and width of a window.
        kernel: usize,
        /// From one window to the next.
        stride: usize,
        /// Pixels added on each side.
        padding: usize,
    },
    /// Averages to `size` x `size`, whatever the size before.
    AveragePool {
        /// Height and width of the output.
        size: usize,
    },
    /// Takes every `stride`-th pixel and adds channels of zeros, as many before as behind.
    PadChannels {
        /// Pixels from one to the next.
        stride: usize,
        /// Channels out.
        channels: usize,
    },
    /// A linear layer over all that an image has.
    Linear(Linear),
    /// In training, zeroes each number with this probability and scales the others up.
    Dropout {
        /// From 0 to below 1.
        probability: f64,
    },
    /// A branch and the way past it, added.
    Residual(Residual),
}

/// A convolution with a square kernel, padded by half its size.
#[derive(Debug, Clone, PartialEq)]
pub struct Conv {
    /// Its prefix in the state dict, such as `layer2.0.conv1`.
    pub name: String,
    /// Channels in.
    pub inputs: usize,
    /// Channels out.
    pub outputs: usize,
    /// Height and width of the kernel; odd.
    pub kernel: usize,
    /// In both directions.
    pub stride: usize,
    /// Parts that channels fall into; 1 where every output sees every input.
    pub groups: usize,
    /// How the weight starts.
    pub init: Init,
    /// How the bias starts, where there is one.
    pub bias: Option<Init>,
}

impl Conv {
    /// Shape of the weight.
    pub fn weight_shape(&self) -> [usize; 4] {
        [self.outputs, self.inputs / self.groups, self.kernel, self.kernel]
    }
}

/// Batch norm over channels.
#[derive(Debug, Clone, PartialEq)]
pub struct BatchNorm {
    /// Its prefix in the state dict.
    pub name: String,
    /// Channels.
    pub channels: usize,
    /// Where its scale starts: 1, or 0 to start with a block that does nothing.
    pub scale: f32,
}

/// A linear layer with bias.
#[derive(Debug, Clone, PartialEq)]
pub struct Linear {
    /// Its prefix in the state dict.
    pub name: String,
    /// Numbers in.
    pub inputs: usize,
    /// Numbers out.
    pub outputs: usize,
    /// How the weight starts.
    pub init: Init,
    /// How the bias starts.
    pub bias: Init,
}

/// `body(x) + past(x)`, where `x` is what `before` gives.
#[derive(Debug, Clone, PartialEq)]
pub struct Residual {
    /// What both ways share.
    pub before: Vec<Layer>,
    /// The branch that is learnt.
    pub body: Vec<Layer>,
    /// The way past it; empty for the identity.
    pub past: Vec<Layer>,
    /// The probability that a training step goes through the branch; in evaluation the branch is
    /// scaled by it. 1 without stochastic depth.
    pub survival: f64,
}

/// What flows between layers, of one image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Channels.
    pub channels: usize,
    /// Height and width; `[1, 1]` after a linear layer.
    pub map: [usize; 2],
}

impl Shape {
    /// Numbers.
    pub const fn len(&self) -> usize {
        self.channels * self.map[0] * self.map[1]
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
