//! Traversal of a network's layers, with the shapes between them.

use super::layer::{Layer, Residual, Shape};
use super::taps::output_size;

/// Visits every layer except the residual ones themselves, in the order of the state dict, with the shapes of
/// its input and output. Returns the output shape of the last layer.
pub(super) fn walk<'a>(
    layers: &'a [Layer],
    input: Shape,
    visit: &mut dyn FnMut(&'a Layer, Shape, Shape),
) -> Shape {
    layers.iter().fold(input, |input, layer| match layer {
        Layer::Residual(Residual { before, body, shortcut, .. }) => {
            let input = walk(before, input, visit);
            let output = walk(body, input, visit);
            let beside = walk(shortcut, input, visit);
            assert_eq!(beside, output, "a branch and its shortcut have one shape");
            output
        }
        leaf => {
            let output = leaf.output(input);
            visit(leaf, input, output);
            output
        }
    })
}

impl Layer {
    /// Returns the output shape of a layer that is not residual.
    fn output(&self, input: Shape) -> Shape {
        let Shape { channels, map } = input;
        match self {
            Self::Conv(conv) => {
                assert_eq!(channels, conv.inputs, "channels into {}", conv.name);
                let size = |size| output_size(size, conv.kernel, conv.stride, conv.padding);
                Shape { channels: conv.outputs, map: map.map(size) }
            }
            Self::MaxPool { kernel, stride, padding } => {
                let size = |size| output_size(size, *kernel, *stride, *padding);
                Shape { channels, map: map.map(size) }
            }
            Self::AveragePool { size } => Shape { channels, map: [*size; 2] },
            Self::PadChannels { stride, channels } => {
                Shape { channels: *channels, map: map.map(|size| size.div_ceil(*stride)) }
            }
            Self::Linear(linear) => {
                assert_eq!(input.len(), linear.inputs, "numbers into {}", linear.name);
                Shape { channels: linear.outputs, map: [1, 1] }
            }
            Self::BatchNorm(_)
            | Self::Relu
            | Self::Gelu
            | Self::Scale { .. }
            | Self::Dropout { .. } => input,
            Self::Residual(_) => unreachable!("walked into"),
        }
    }
}
