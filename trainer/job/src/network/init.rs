//! How weights start: the rule of each network's source.

/// Where a tensor's numbers come from before the first step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Init {
    /// Uniform in `±bound`.
    Uniform {
        /// The largest.
        bound: f32,
    },
    /// Normal around 0.
    Normal {
        /// Standard deviation.
        deviation: f32,
    },
    /// All the same.
    Constant(f32),
    /// Of a convolution: as many filters as there are input channels pass one channel each, the others
    /// are uniform in `±bound`.
    Dirac {
        /// The largest.
        bound: f32,
    },
    /// Of a convolution over images: filters that make its outputs uncorrelated, taken from training
    /// images, and their negatives.
    Whitening,
}

/// A source's rule for all its layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scheme {
    /// `reset_parameters` of PyTorch's layers, which the notes' module leaves as it is: uniform in
    /// `±1/sqrt(fan_in)`, which is what `kaiming_uniform_(a=sqrt(5))` comes to.
    Default,
    /// Convolutions and linear weights normal with variance `2 / fan_in`: He et al., Delving Deep
    /// into Rectifiers, ICCV 2015, which the ResNet paper follows.
    FanIn,
    /// Convolutions normal with variance `2 / fan_out`, linear layers as PyTorch's: torchvision's
    /// `resnet.py`.
    Torchvision,
    /// As torchvision's, but linear biases start at 0: `fb.resnet.torch` and what grew from it.
    FanOut,
    /// Convolutions normal with variance `2 / fan_out`, linear weights with deviation 0.01, biases
    /// 0: torchvision's `vgg.py`.
    Vgg,
}

impl Scheme {
    /// Of a convolution's weight: `[out, in / groups, height, width]`.
    pub(super) fn conv(self, [outputs, inputs, height, width]: [usize; 4]) -> Init {
        let (fan_in, fan_out) = (inputs * height * width, outputs * height * width);
        match self {
            Self::Default => uniform(fan_in),
            Self::FanIn => kaiming(fan_in),
            Self::Torchvision | Self::FanOut | Self::Vgg => kaiming(fan_out),
        }
    }

    /// Of a linear layer's weight and bias.
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
