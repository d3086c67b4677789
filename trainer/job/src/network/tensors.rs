//! The tensors of a state dict.

use super::init::Init;
use super::layer::{BatchNorm, Conv, Layer, Linear, Shape};
use super::taps::Taps;

/// A tensor of the state dict.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorSpec {
    /// Key in the state dict.
    pub name: String,
    /// Shape; empty for a scalar.
    pub shape: Vec<usize>,
    /// Kind of the tensor.
    pub role: Role,
    /// Initial values.
    pub init: Init,
    /// Taps of a convolution's kernel that ever see a pixel; `None` if all do.
    pub live: Option<Taps>,
}

impl TensorSpec {
    /// Returns the number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Returns whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the shape of the live part, which is the part that is trained.
    pub fn live_shape(&self) -> Vec<usize> {
        let mut shape = self.shape.clone();
        if let Some(Taps { rows, columns }) = &self.live {
            shape[2] = rows.len();
            shape[3] = columns.len();
        }
        shape
    }

    /// Returns the number of elements of the live part.
    pub fn live_len(&self) -> usize {
        self.live_shape().iter().product()
    }
}

/// The kind of a tensor, which decides whether it is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A convolution's or linear layer's weight.
    Weight,
    /// A convolution's or linear layer's bias.
    Bias,
    /// A batch norm's scale.
    NormWeight,
    /// A batch norm's shift.
    NormBias,
    /// A weight that is not trained.
    Fixed,
    /// A batch norm's running mean: not trained.
    RunningMean,
    /// A batch norm's running variance: not trained.
    RunningVar,
    /// Number of batches that a batch norm has seen: not trained, i64.
    BatchesTracked,
}

impl Role {
    /// Returns whether an optimizer trains the tensor.
    pub const fn is_parameter(self) -> bool {
        matches!(self, Self::Weight | Self::Bias | Self::NormWeight | Self::NormBias)
    }
}

/// Returns the tensors of a layer whose input has this shape.
pub(super) fn tensors_of(layer: &Layer, input: Shape) -> Vec<TensorSpec> {
    match layer {
        Layer::Conv(conv) => conv_tensors(conv, input.map),
        Layer::BatchNorm(norm) => batch_norm_tensors(norm),
        Layer::Linear(linear) => linear_tensors(linear),
        _ => Vec::new(),
    }
}

fn conv_tensors(conv: &Conv, map: [usize; 2]) -> Vec<TensorSpec> {
    let Conv { name, outputs, kernel, stride, padding, init, bias, .. } = conv;
    let weight = TensorSpec {
        name: format!("{name}.weight"),
        shape: conv.weight_shape().to_vec(),
        role: if *init == Init::Whitening { Role::Fixed } else { Role::Weight },
        init: *init,
        live: Taps::of(map, *kernel, *stride, *padding),
    };
    let bias = bias.map(|init| whole(name, "bias", vec![*outputs], Role::Bias, init));
    std::iter::once(weight).chain(bias).collect()
}

fn batch_norm_tensors(norm: &BatchNorm) -> Vec<TensorSpec> {
    let BatchNorm { name, channels, scale, trains_scale, .. } = norm;
    let scale_role = if *trains_scale { Role::NormWeight } else { Role::Fixed };
    let entries = [
        ("weight", vec![*channels], scale_role, *scale),
        ("bias", vec![*channels], Role::NormBias, 0.0),
        ("running_mean", vec![*channels], Role::RunningMean, 0.0),
        ("running_var", vec![*channels], Role::RunningVar, 1.0),
        ("num_batches_tracked", vec![], Role::BatchesTracked, 0.0),
    ];
    let spec =
        |(suffix, shape, role, start)| whole(name, suffix, shape, role, Init::Constant(start));
    entries.map(spec).to_vec()
}

fn linear_tensors(Linear { name, inputs, outputs, init, bias }: &Linear) -> Vec<TensorSpec> {
    let weight = whole(name, "weight", vec![*outputs, *inputs], Role::Weight, *init);
    let bias = bias.map(|init| whole(name, "bias", vec![*outputs], Role::Bias, init));
    std::iter::once(weight).chain(bias).collect()
}

fn whole(layer: &str, suffix: &str, shape: Vec<usize>, role: Role, init: Init) -> TensorSpec {
    TensorSpec { name: format!("{layer}.{suffix}"), shape, role, init, live: None }
}
