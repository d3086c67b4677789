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
    /// A number times the standard normal distribution's chance of a smaller one.
    Gelu,
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
    /// Multiplies every number.
    Scale {
        /// By this.
        factor: f64,
    },
    /// In training, zeroes each number with this probability and scales the others up.
    Dropout {
        /// From 0 to below 1.
        probability: f64,
    },
    /// A branch and its shortcut, added.
    Residual(Residual),
}

/// A convolution with a square kernel.
#[derive(Debug, Clone, PartialEq)]
pub struct Conv {
    /// Its prefix in the state dict, such as `layer2.0.conv1`.
    pub name: String,
    /// Channels in.
    pub inputs: usize,
    /// Channels out.
    pub outputs: usize,
    /// Height and width of the kernel.
    pub kernel: usize,
    /// In both directions.
    pub stride: usize,
    /// Pixels of zero added on each side.
    pub padding: usize,
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
    /// Whether its scale is trained.
    pub trains_scale: bool,
    /// Of the running statistics, the part that a batch replaces.
    pub momentum: f64,
    /// Added to the variance.
    pub eps: f64,
}

impl BatchNorm {
    /// PyTorch's.
    pub const fn new(name: String, channels: usize) -> Self {
        Self { name, channels, scale: 1.0, trains_scale: true, momentum: 0.1, eps: 1e-5 }
    }
}

/// A linear layer.
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
    /// How the bias starts, where there is one.
    pub bias: Option<Init>,
}

/// `body(x) + shortcut(x)`, where `x` is what `before` gives.
#[derive(Debug, Clone, PartialEq)]
pub struct Residual {
    /// What both ways share.
    pub before: Vec<Layer>,
    /// The branch that is learnt.
    pub body: Vec<Layer>,
    /// The shortcut; empty for the identity.
    pub shortcut: Vec<Layer>,
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
