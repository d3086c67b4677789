//! Layers over views of flat storage. Like `tch`, they panic when libtorch returns an error: see `caught`.

use std::panic::panic_any;
use std::sync::Arc;

use comm::Communicator;
use job::network;
use tch::Tensor;
use torch_ext::NormParts;

use super::Mode;
use crate::flat::Flat;

/// A convolution with a square kernel of any size, of which only the live part is stored.
pub struct Conv {
    weight: Tensor,
    grad_view: Option<Tensor>,
    bias: Option<Tensor>,
    stride: i64,
    padding: i64,
    groups: i64,
}

impl Conv {
    /// Creates the layer over the tensors `{name}.weight`, of which it takes the live part, and
    /// `{name}.bias`.
    pub fn new(flat: &Flat, conv: &network::Conv) -> Self {
        let weight = format!("{}.weight", conv.name);
        Self {
            padding: flat.padding(&weight, conv.padding) as i64,
            weight: flat.tensor(&weight),
            grad_view: flat.grad_view(&weight),
            bias: conv.bias.map(|_| flat.tensor(&format!("{}.bias", conv.name))),
            stride: conv.stride as i64,
            groups: conv.groups as i64,
        }
    }

    /// Maps `[N, C, H, W]` to `[N, C', H', W']`.
    pub fn forward(&self, input: &Tensor) -> Tensor {
        let (stride, padding, groups) = (self.stride, self.padding, self.groups);
        let Self { weight, grad_view, .. } = self;
        let output =
            match torch_ext::conv2d(input, weight, grad_view.as_ref(), stride, padding, groups) {
                Ok(output) => output,
                Err(error) => panic_any(error),
            };
        match &self.bias {
            // The bias is converted, so that a 16-bit output is not promoted to f32.
            Some(bias) => &output + bias.to_kind(output.kind()).view([1, -1, 1, 1]),
            None => output,
        }
    }
}

/// Batch norm over channels, with the addition and ReLU that may follow it.
pub struct BatchNorm {
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    momentum: f64,
    eps: f64,
    /// Whether a ReLU follows.
    pub has_relu: bool,
    /// Whether training steps use the fused kernels of norm, addition and ReLU on a GPU.
    is_fused: bool,
    /// The ranks over whose images training statistics are computed; `None` for this rank only.
    peers: Option<Arc<dyn Communicator>>,
}

impl BatchNorm {
    /// Creates the layer over the tensors `{name}.weight`, `.bias`, `.running_mean` and `.running_var`.
    pub fn new(flat: &Flat, norm: &network::BatchNorm) -> Self {
        let tensor = |suffix| flat.tensor(&format!("{}.{suffix}", norm.name));
        Self {
            weight: tensor("weight"),
            bias: tensor("bias"),
            running_mean: tensor("running_mean"),
            running_var: tensor("running_var"),
            momentum: norm.momentum,
            eps: norm.eps,
            has_relu: false,
            is_fused: false,
            peers: None,
        }
    }

    /// From now on, training steps compute norm, addition and ReLU in one or two kernels, if these support
    /// the input.
    pub fn fuse(&mut self) {
        self.is_fused = true;
    }

    /// From now on, training statistics are computed over the images of all ranks.
    pub fn synchronize(&mut self, peers: &Arc<dyn Communicator>) {
        self.peers = Some(Arc::clone(peers));
    }

    /// Returns `relu(norm(input) + residual)`, without the addition if `residual` is `None` and without the
    /// ReLU unless `has_relu`. Keeps the shape. `residual` is called only when its result is needed, which
    /// determines where backward reaches it.
    pub fn forward(
        &self,
        input: &Tensor,
        residual: Option<&dyn Fn() -> Tensor>,
        mode: Mode,
    ) -> Tensor {
        let parts = NormParts {
            weight: &self.weight,
            bias: &self.bias,
            running_mean: &self.running_mean,
            running_var: &self.running_var,
            momentum: self.momentum,
            eps: self.eps,
        };
        let normalized = match (&self.peers, mode) {
            (Some(peers), Mode::Train) => torch_ext::sync_batch_norm(input, &parts, peers),
            (None, Mode::Train) if self.is_fused => {
                let residual = residual.map(|residual| residual());
                return self.fused(input, residual.as_ref(), &parts);
            }
            _ => Ok(self.plain(input, mode)),
        };
        let normalized = normalized.unwrap_or_else(|error| panic_any(error));
        self.add_and_relu(normalized, residual.map(|residual| residual()).as_ref())
    }

    fn fused(&self, input: &Tensor, residual: Option<&Tensor>, parts: &NormParts<'_>) -> Tensor {
        match torch_ext::fused_batch_norm(input, residual, self.has_relu, parts) {
            Ok(Some(output)) => output,
            Ok(None) => self.add_and_relu(self.plain(input, Mode::Train), residual),
            Err(error) => panic_any(error),
        }
    }

    fn add_and_relu(&self, normalized: Tensor, residual: Option<&Tensor>) -> Tensor {
        let mut output = match residual {
            Some(residual) => normalized + residual,
            None => normalized,
        };
        // In place: neither a norm nor an addition needs its output in backward.
        if self.has_relu { output.relu_() } else { output }
    }

    fn plain(&self, input: &Tensor, mode: Mode) -> Tensor {
        input.batch_norm(
            Some(&self.weight),
            Some(&self.bias),
            Some(&self.running_mean),
            Some(&self.running_var),
            mode == Mode::Train,
            self.momentum,
            self.eps,
            true,
        )
    }
}

/// A linear layer.
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    /// Creates the layer over the tensors `{name}.weight` and `{name}.bias`.
    pub fn new(flat: &Flat, linear: &network::Linear) -> Self {
        let tensor = |suffix| flat.tensor(&format!("{}.{suffix}", linear.name));
        Self { weight: tensor("weight"), bias: linear.bias.map(|_| tensor("bias")) }
    }

    /// Maps `[N, inputs]` to `[N, outputs]`.
    pub fn forward(&self, input: &Tensor) -> Tensor {
        input.linear(&self.weight, self.bias.as_ref())
    }
}

/// Returns every `stride`-th pixel of `[N, C, H, W]` in both directions, with channels of zeros added
/// before and behind so that there are `channels`.
pub fn pad_channels(input: &Tensor, stride: i64, channels: i64) -> Tensor {
    let added = channels - input.size()[1];
    let (before, behind) = (added / 2, added - added / 2);
    let taken = input.slice(2, None, None, stride).slice(3, None, None, stride);
    taken.constant_pad_nd([0, 0, 0, 0, before, behind])
}

#[cfg(test)]
mod tests {
    use job::ExitCode;
    use tch::{Device, Kind};

    use super::*;
    use crate::{TrainError, caught};

    /// Returns the error of a convolution of `input` with a kernel of a single weight.
    fn refused(input: &Tensor) -> TrainError {
        let weight = Tensor::ones([1, 1, 1, 1], (Kind::Float, Device::Cpu));
        let conv = Conv { weight, grad_view: None, bias: None, stride: 1, padding: 0, groups: 1 };
        let forward = || tch::no_grad(|| Ok(conv.forward(input)));
        caught(forward).expect_err("libtorch refuses it")
    }

    #[test]
    fn a_convolution_without_memory_for_its_output_is_out_of_memory() {
        let side = 1 << 24; // 2^50 bytes of output: more than a process can address
        let pixel = Tensor::ones([1, 1, 1, 1], (Kind::Float, Device::Cpu));
        let error = refused(&pixel.expand([1, 1, side, side], false));
        assert_eq!(error.exit_code(), ExitCode::OutOfMemory, "{error}");
    }

    #[test]
    fn what_libtorch_refuses_in_a_layer_is_its_error_and_no_panic() {
        let error = refused(&Tensor::ones([1, 2, 4, 4], (Kind::Float, Device::Cpu)));
        assert!(matches!(error, TrainError::Torch(_)), "{error}");
        assert_eq!(error.exit_code(), ExitCode::RankFailed);
    }
}
