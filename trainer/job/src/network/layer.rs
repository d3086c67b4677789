//! The layers that networks are made of.

use super::init::Init;

/// A layer of a network.
#[derive(Debug, Clone, PartialEq)]
pub enum Layer {
    /// A convolution.
    Conv(Conv),
    /// Batch norm over channels.
    BatchNorm(BatchNorm),
    /// `max(x, 0)`.
    Relu,
    /// Gaussian error linear unit: `x` times the standard normal distribution function at `x`.
    Gelu,
    /// Max-pool with a square window.
    MaxPool {
        /// Height and width of the window.
        kernel: usize,
        /// Distance from one window to the next, in pixels.
        stride: usize,
        /// Pixels added on each side.
        padding: usize,
    },
    /// Average pool to `size` x `size`, from a map of any size.
    AveragePool {
        /// Height and width of the output.
        size: usize,
    },
    /// Takes every `stride`-th pixel and adds channels of zeros, half of them before and half after the
    /// input's.
    PadChannels {
        /// Distance between the pixels that are kept.
        stride: usize,
        /// Output channels.
        channels: usize,
    },
    /// A linear layer over all elements of an image.
    Linear(Linear),
    /// Multiplication by a constant.
    Scale {
        /// The constant.
        factor: f64,
    },
    /// In training, zeroes each element with this probability and scales the others up.
    Dropout {
        /// Probability, from 0 to below 1.
        probability: f64,
    },
    /// A branch and its shortcut, added.
    Residual(Residual),
}

/// A convolution with a square kernel.
#[derive(Debug, Clone, PartialEq)]
pub struct Conv {
    /// Prefix of its tensors in the state dict, such as `layer2.0.conv1`.
    pub name: String,
    /// Input channels.
    pub inputs: usize,
    /// Output channels.
    pub outputs: usize,
    /// Height and width of the kernel.
    pub kernel: usize,
    /// Stride in both directions.
    pub stride: usize,
    /// Zero padding on each side, in pixels.
    pub padding: usize,
    /// Number of groups into which channels are divided; with 1 every output sees every input.
    pub groups: usize,
    /// Initialization of the weight.
    pub init: Init,
    /// Initialization of the bias, if there is one.
    pub bias: Option<Init>,
}

impl Conv {
    /// Returns the shape of the weight.
    pub fn weight_shape(&self) -> [usize; 4] {
        [self.outputs, self.inputs / self.groups, self.kernel, self.kernel]
    }
}

/// Batch norm over channels.
#[derive(Debug, Clone, PartialEq)]
pub struct BatchNorm {
    /// Prefix of its tensors in the state dict.
    pub name: String,
    /// Channels.
    pub channels: usize,
    /// Initial value of the scale: 1, or 0 so that a residual block starts as the identity.
    pub scale: f32,
    /// Whether the scale is trained.
    pub trains_scale: bool,
    /// Weight of the current batch in the running statistics.
    pub momentum: f64,
    /// Added to the variance before the square root.
    pub eps: f64,
}

impl BatchNorm {
    /// Makes a batch norm with PyTorch's defaults.
    pub const fn new(name: String, channels: usize) -> Self {
        Self { name, channels, scale: 1.0, trains_scale: true, momentum: 0.1, eps: 1e-5 }
    }
}

/// A linear layer.
#[derive(Debug, Clone, PartialEq)]
pub struct Linear {
    /// Prefix of its tensors in the state dict.
    pub name: String,
    /// Input elements.
    pub inputs: usize,
    /// Output elements.
    pub outputs: usize,
    /// Initialization of the weight.
    pub init: Init,
    /// Initialization of the bias, if there is one.
    pub bias: Option<Init>,
}

/// A residual block: `body(x) + shortcut(x)`, where `x` is the output of `before`.
#[derive(Debug, Clone, PartialEq)]
pub struct Residual {
    /// The layers that branch and shortcut share.
    pub before: Vec<Layer>,
    /// The residual branch.
    pub body: Vec<Layer>,
    /// The shortcut branch; empty for the identity.
    pub shortcut: Vec<Layer>,
    /// Probability that a training step executes the branch; in evaluation the branch is scaled by it. 1
    /// without stochastic depth.
    pub survival: f64,
}

/// Shape of the tensor between two layers, for one image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Channels.
    pub channels: usize,
    /// Height and width; `[1, 1]` after a linear layer.
    pub map: [usize; 2],
}

impl Shape {
    /// Returns the number of elements.
    pub const fn len(&self) -> usize {
        self.channels * self.map[0] * self.map[1]
    }

    /// Returns whether there are no elements.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
