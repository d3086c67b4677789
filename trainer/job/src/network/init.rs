//! Initialization of weights, as each network's source does it.

/// The initial values of a tensor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Init {
    /// Uniform in `-bound..bound`.
    Uniform {
        /// Largest absolute value.
        bound: f32,
    },
    /// Normal with mean 0.
    Normal {
        /// Standard deviation.
        deviation: f32,
    },
    /// The same value for all elements.
    Constant(f32),
    /// Convolution whose first filters, as many as there are input channels, pass one channel each; the
    /// others are uniform in `-bound..bound`.
    Dirac {
        /// Largest absolute value.
        bound: f32,
    },
    /// Convolution on images whose filters whiten patches, that is, make outputs uncorrelated, and their
    /// negatives. The filters are computed from training images.
    Whitening,
}

/// The initialization rules of a source for all layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scheme {
    /// `reset_parameters` of PyTorch's layers, which the notes' module keeps: uniform in `±1/sqrt(fan_in)`,
    /// which equals `kaiming_uniform_(a=sqrt(5))`.
    Default,
    /// Convolutions and linear weights normal with variance `2 / fan_in`: He et al., Delving Deep
    /// into Rectifiers, ICCV 2015, which the ResNet paper follows.
    FanIn,
    /// Convolutions normal with variance `2 / fan_out`, linear layers as PyTorch's: torchvision's
    /// `resnet.py`.
    Torchvision,
    /// As `Torchvision`, but linear biases start at 0: `fb.resnet.torch` and programs derived from it.
    FanOut,
    /// Convolutions normal with variance `2 / fan_out`, linear weights with deviation 0.01, biases
    /// 0: torchvision's `vgg.py`.
    Vgg,
}

impl Scheme {
    /// Returns the initialization of a convolution's weight `[out, in / groups, height, width]`.
    pub(super) fn conv(self, [outputs, inputs, height, width]: [usize; 4]) -> Init {
        let (fan_in, fan_out) = (inputs * height * width, outputs * height * width);
        match self {
            Self::Default => uniform(fan_in),
            Self::FanIn => kaiming(fan_in),
            Self::Torchvision | Self::FanOut | Self::Vgg => kaiming(fan_out),
        }
    }

    /// Returns the initializations of a linear layer's weight and bias.
    pub(super) fn linear(self, fan_in: usize) -> [Init; 2] {
        match self {
            Self::Default | Self::Torchvision => [uniform(fan_in); 2],
            Self::FanIn => [kaiming(fan_in), uniform(fan_in)],
            Self::FanOut => [uniform(fan_in), Init::Constant(0.0)],
            Self::Vgg => [Init::Normal { deviation: 0.01 }, Init::Constant(0.0)],
        }
    }
}

fn uniform(fan_in: usize) -> Init {
    Init::Uniform { bound: 1.0 / (fan_in as f32).sqrt() }
}

fn kaiming(fan: usize) -> Init {
    Init::Normal { deviation: (2.0 / fan as f32).sqrt() }
}
