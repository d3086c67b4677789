//! Parameters and multiply-adds of a network, layer by layer.

use serde::Serialize;

use super::layer::{Layer, Shape};
use super::tensors::tensors_of;
use super::{Network, TensorSpec};

/// Costs of a network for one image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Number of trained parameters: PyTorch's count without the fixed ones.
    pub parameters: usize,
    /// Number of parameters that never see a pixel of an image of this size.
    pub unseen_parameters: usize,
    /// Multiply-adds of convolutions and linear layers; those with padding count.
    pub multiply_adds: u64,
    /// All layers that have parameters or change the shape.
    pub layers: Vec<LayerSummary>,
}

/// Costs of a layer for one image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LayerSummary {
    /// Prefix of the layer's tensors in the state dict; empty if it has none.
    pub name: String,
    /// Kind of the layer, such as `conv 3x3/2`.
    pub kind: String,
    /// Input shape: channels, height and width.
    pub input: [usize; 3],
    /// Output shape: channels, height and width.
    pub output: [usize; 3],
    /// Number of trained parameters.
    pub parameters: usize,
    /// Number of parameters that never see a pixel.
    pub unseen_parameters: usize,
    /// Multiply-adds.
    pub multiply_adds: u64,
}

impl Network {
    /// Returns the costs of the network.
    pub fn summary(&self) -> Summary {
        let mut layers = Vec::new();
        self.visit(|layer, input, output| {
            if !matches!(
                layer,
                Layer::Relu | Layer::Gelu | Layer::Dropout { .. } | Layer::Scale { .. }
            ) {
                layers.push(summarize(layer, input, output));
            }
        });
        Summary {
            parameters: layers.iter().map(|layer| layer.parameters).sum(),
            unseen_parameters: layers.iter().map(|layer| layer.unseen_parameters).sum(),
            multiply_adds: layers.iter().map(|layer| layer.multiply_adds).sum(),
            layers,
        }
    }
}

fn summarize(layer: &Layer, input: Shape, output: Shape) -> LayerSummary {
    let parameters: Vec<TensorSpec> =
        tensors_of(layer, input).into_iter().filter(|tensor| tensor.role.is_parameter()).collect();
    let unseen = |tensor: &TensorSpec| tensor.len() - tensor.live_len();
    let sizes = |shape: Shape| [shape.channels, shape.map[0], shape.map[1]];
    LayerSummary {
        name: name(layer).to_owned(),
        kind: kind(layer),
        input: sizes(input),
        output: sizes(output),
        parameters: parameters.iter().map(TensorSpec::len).sum(),
        unseen_parameters: parameters.iter().map(unseen).sum(),
        multiply_adds: multiply_adds(layer, output),
    }
}

fn name(layer: &Layer) -> &str {
    match layer {
        Layer::Conv(conv) => &conv.name,
        Layer::BatchNorm(norm) => &norm.name,
        Layer::Linear(linear) => &linear.name,
        _ => "",
    }
}

fn kind(layer: &Layer) -> String {
    let stride = |stride: usize| if stride == 1 { String::new() } else { format!("/{stride}") };
    match layer {
        Layer::Conv(conv) => {
            let groups = match conv.groups {
                1 => String::new(),
                groups => format!(", {groups} groups"),
            };
            format!("conv {0}x{0}{1}{groups}", conv.kernel, stride(conv.stride))
        }
        Layer::BatchNorm(_) => "batch norm".to_owned(),
        Layer::Relu => "relu".to_owned(),
        Layer::Gelu => "gelu".to_owned(),
        Layer::Scale { factor } => format!("times {factor}"),
        Layer::MaxPool { kernel, stride: every, .. } => {
            format!("max-pool {kernel}x{kernel}{}", stride(*every))
        }
        Layer::AveragePool { .. } => "average pool".to_owned(),
        Layer::PadChannels { stride: every, .. } => format!("pad channels{}", stride(*every)),
        Layer::Linear(_) => "linear".to_owned(),
        Layer::Dropout { .. } => "dropout".to_owned(),
        Layer::Residual(_) => "residual".to_owned(),
    }
}

fn multiply_adds(layer: &Layer, output: Shape) -> u64 {
    let of_one_output = match layer {
        Layer::Conv(conv) => conv.weight_shape()[1..].iter().product(),
        Layer::Linear(linear) => linear.inputs,
        _ => 0,
    };
    (of_one_output * output.len()) as u64
}
