//! Stem, stages of blocks, and head: the architecture of all families except VGG and airbench.

use super::init::Scheme;
use super::layer::{BatchNorm, Conv, Layer, Linear, Residual};
use crate::config::{Model, Stem};

/// A network of stages. Each stage after the first halves the height and width of the map and doubles the
/// channels.
#[derive(Debug)]
pub(super) struct Stages {
    pub order: Order,
    pub block: Block,
    /// Number of blocks per stage.
    pub blocks: &'static [usize],
    /// Output channels of the stem.
    pub stem: usize,
    /// Channels of the 3x3 convolutions in the first stage.
    pub width: usize,
    /// Output channels of the blocks of the first stage.
    pub out: usize,
    /// Groups of a bottleneck's 3x3 convolution.
    pub groups: usize,
    pub shortcut: Shortcut,
    /// Whether the network's paper has dropout.
    pub has_dropout: bool,
}

/// Position of batch norm and ReLU in a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// After each convolution; the last ReLU comes after the addition.
    PostActivation,
    /// Before each convolution; nothing comes after the addition.
    PreActivation,
}

/// The convolutions of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Block {
    /// 3x3, 3x3; the first has the stride.
    Basic,
    /// 1x1, 3x3, 1x1. The stride is in the 3x3, as in torchvision; with pre-activation it is in the first
    /// 1x1, as in the paper's own program.
    Bottleneck,
}

/// The shortcut of a block. It is the identity unless the block changes the map's size or channels; these
/// variants say what it is otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shortcut {
    /// A 1x1 convolution. For ResNet-18 and -34 the notes' rule, "where the stride is not 1", selects the
    /// same blocks.
    Projection,
    /// Every second pixel, with zeros in the new channels: option A of the ResNet paper.
    Padding,
    /// No shortcut, in any block: a plain network.
    Absent,
}

/// Makes layers that start as `scheme` says.
pub(super) struct Maker<'a> {
    pub model: &'a Model,
    pub scheme: Scheme,
}

impl Maker<'_> {
    pub(super) fn conv(
        &self,
        name: String,
        [inputs, outputs]: [usize; 2],
        kernel: usize,
        stride: usize,
        groups: usize,
    ) -> Conv {
        let init = self.scheme.conv([outputs, inputs / groups, kernel, kernel]);
        let padding = kernel / 2;
        Conv { name, inputs, outputs, kernel, stride, padding, groups, init, bias: None }
    }

    pub(super) fn linear(&self, name: &str, [inputs, outputs]: [usize; 2]) -> Layer {
        let [init, bias] = self.scheme.linear(inputs);
        let bias = Some(bias);
        Layer::Linear(Linear { name: name.to_owned(), inputs, outputs, init, bias })
    }
}

pub(super) fn batch_norm(name: String, channels: usize) -> Layer {
    Layer::BatchNorm(BatchNorm::new(name, channels))
}

/// Sizes of one block.
struct BlockSpec {
    name: String,
    inputs: usize,
    width: usize,
    outputs: usize,
    stride: usize,
    survival: f64,
}

impl BlockSpec {
    fn changes_shape(&self) -> bool {
        self.stride != 1 || self.inputs != self.outputs
    }
}

impl Stages {
    /// Returns the layers from images of `channels` channels to logits.
    pub(super) fn layers(&self, maker: &Maker<'_>, channels: usize, classes: usize) -> Vec<Layer> {
        let mut layers = self.stem_layers(maker, channels);
        let mut features = self.stem;
        for block in self.block_specs(maker.model.stochastic_depth) {
            features = block.outputs;
            layers.extend(self.block_layers(maker, &block));
        }
        if self.order == Order::PreActivation {
            layers.extend([batch_norm("bn".to_owned(), features), Layer::Relu]);
        }
        layers.push(Layer::AveragePool { size: 1 });
        layers.push(maker.linear("linear", [features, classes]));
        layers
    }

    fn stem_layers(&self, maker: &Maker<'_>, channels: usize) -> Vec<Layer> {
        let (kernel, stride) = match maker.model.stem {
            Stem::Notes => (3, 2),
            Stem::Cifar => (3, 1),
            Stem::Imagenet => (7, 2),
        };
        let conv = maker.conv("conv1".to_owned(), [channels, self.stem], kernel, stride, 1);
        let mut layers = vec![Layer::Conv(conv)];
        if self.order == Order::PostActivation {
            layers.extend([batch_norm("bn1".to_owned(), self.stem), Layer::Relu]);
        }
        if maker.model.stem != Stem::Cifar {
            layers.push(Layer::MaxPool { kernel: 3, stride: 2, padding: 1 });
        }
        layers
    }

    /// Returns the sizes of every block. The probability that training skips a block rises linearly to
    /// `stochastic_depth` at the last block: Huang et al., Deep Networks with Stochastic Depth, ECCV 2016.
    fn block_specs(&self, stochastic_depth: f64) -> Vec<BlockSpec> {
        let total: usize = self.blocks.iter().sum();
        let mut specs: Vec<BlockSpec> = Vec::with_capacity(total);
        for (stage, count) in self.blocks.iter().enumerate() {
            for index in 0..*count {
                let share = (specs.len() + 1) as f64 / total as f64;
                specs.push(BlockSpec {
                    name: format!("layer{}.{index}", stage + 1),
                    inputs: specs.last().map_or(self.stem, |block| block.outputs),
                    width: self.width << stage,
                    outputs: self.out << stage,
                    stride: if index == 0 && stage > 0 { 2 } else { 1 },
                    survival: 1.0 - share * stochastic_depth,
                });
            }
        }
        specs
    }

    fn block_layers(&self, maker: &Maker<'_>, block: &BlockSpec) -> Vec<Layer> {
        let (before, body) = self.branch(maker, block);
        if self.shortcut == Shortcut::Absent {
            return body.into_iter().chain([Layer::Relu]).collect();
        }
        let shortcut = self.shortcut_layers(maker, block);
        let residual =
            Layer::Residual(Residual { before, body, shortcut, survival: block.survival });
        match self.order {
            Order::PostActivation => vec![residual, Layer::Relu],
            Order::PreActivation => vec![residual],
        }
    }

    fn convs(&self, maker: &Maker<'_>, block: &BlockSpec) -> Vec<Conv> {
        let BlockSpec { name, inputs, width, outputs, stride, .. } = block;
        let conv = |number, channels, kernel, stride, groups| {
            maker.conv(format!("{name}.conv{number}"), channels, kernel, stride, groups)
        };
        let strides = match self.order {
            Order::PostActivation => [1, *stride],
            Order::PreActivation => [*stride, 1],
        };
        match self.block {
            Block::Basic => vec![
                conv(1, [*inputs, *width], 3, *stride, 1),
                conv(2, [*width, *outputs], 3, 1, 1),
            ],
            Block::Bottleneck => vec![
                conv(1, [*inputs, *width], 1, strides[0], 1),
                conv(2, [*width, *width], 3, strides[1], self.groups),
                conv(3, [*width, *outputs], 1, 1, 1),
            ],
        }
    }

    /// Returns the layers that branch and shortcut share, and those of the branch.
    fn branch(&self, maker: &Maker<'_>, block: &BlockSpec) -> (Vec<Layer>, Vec<Layer>) {
        let convs = self.convs(maker, block);
        let last = convs.len();
        let (mut before, mut body) = (Vec::new(), Vec::new());
        for (number, conv) in (1..).zip(convs) {
            let norm = |channels| batch_norm(format!("{}.bn{number}", block.name), channels);
            match self.order {
                Order::PostActivation => {
                    let norm = norm(conv.outputs);
                    body.extend([Layer::Conv(conv), norm]);
                    body.extend((number < last).then_some(Layer::Relu));
                }
                Order::PreActivation => {
                    let shared = number == 1 && block.changes_shape();
                    let into = if shared { &mut before } else { &mut body };
                    into.extend([norm(conv.inputs), Layer::Relu]);
                    let dropout = maker.model.dropout.filter(|p| *p > 0.0 && number == last);
                    body.extend(dropout.map(|probability| Layer::Dropout { probability }));
                    body.push(Layer::Conv(conv));
                }
            }
        }
        if maker.model.zero_init_residual
            && let Some(Layer::BatchNorm(norm)) = body.last_mut()
        {
            norm.scale = 0.0;
        }
        (before, body)
    }

    fn shortcut_layers(&self, maker: &Maker<'_>, block: &BlockSpec) -> Vec<Layer> {
        let BlockSpec { name, inputs, outputs, stride, .. } = block;
        if !block.changes_shape() {
            return Vec::new();
        }
        if self.shortcut == Shortcut::Padding {
            return vec![Layer::PadChannels { stride: *stride, channels: *outputs }];
        }
        let conv = maker.conv(format!("{name}.shortcut.0"), [*inputs, *outputs], 1, *stride, 1);
        let norm = batch_norm(format!("{name}.shortcut.1"), *outputs);
        std::iter::once(Layer::Conv(conv))
            .chain((self.order == Order::PostActivation).then_some(norm))
            .collect()
    }
}
