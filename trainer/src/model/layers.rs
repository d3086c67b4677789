//! Layers over views of flat storage.

use std::sync::Arc;

use comm::Communicator;
use tch::Tensor;
use torch_ext::NormParts;

use super::Mode;
use crate::flat::Flat;

/// A convolution without bias.
pub struct Conv {
    weight: Tensor,
    stride: i64,
    padding: i64,
}

impl Conv {
    /// A square kernel of any size, padded so that stride 1 keeps height and width.
    pub fn new(flat: &Flat, name: &str, stride: usize) -> Self {
        let name = format!("{name}.weight");
        let padding = flat.padding(&name) as i64;
        Self { weight: flat.tensor(&name), stride: stride as i64, padding }
    }

    /// `[N, C, H, W]` to `[N, C', H', W']`.
    pub fn forward(&self, input: &Tensor) -> Tensor {
        match torch_ext::conv2d(input, &self.weight, self.stride, self.padding, 1) {
            Ok(output) => output,
            Err(error) => panic!("{error}"),
        }
    }
}

/// Batch norm over channels.
pub struct BatchNorm {
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    /// With whom statistics are shared.
    peers: Option<Arc<dyn Communicator>>,
}

impl BatchNorm {
    /// PyTorch's defaults.
    const MOMENTUM: f64 = 0.1;
    const EPS: f64 = 1e-5;

    /// The four tensors under `name`.
    pub fn new(flat: &Flat, name: &str) -> Self {
        let tensor = |suffix| flat.tensor(&format!("{name}.{suffix}"));
        Self {
            weight: tensor("weight"),
            bias: tensor("bias"),
            running_mean: tensor("running_mean"),
            running_var: tensor("running_var"),
            peers: None,
        }
    }

    /// From now on, training statistics are those of all ranks' images.
    pub fn synchronize(&mut self, peers: &Arc<dyn Communicator>) {
        self.peers = Some(Arc::clone(peers));
    }

    /// Keeps the shape.
    pub fn forward(&self, input: &Tensor, mode: Mode) -> Tensor {
        if let (Mode::Train, Some(peers)) = (mode, &self.peers) {
            let parts = NormParts {
                weight: &self.weight,
                bias: &self.bias,
                running_mean: &self.running_mean,
                running_var: &self.running_var,
                momentum: Self::MOMENTUM,
                eps: Self::EPS,
            };
            return match torch_ext::sync_batch_norm(input, &parts, peers) {
                Ok(output) => output,
                Err(error) => panic!("{error}"),
            };
        }
        input.batch_norm(
            Some(&self.weight),
            Some(&self.bias),
            Some(&self.running_mean),
            Some(&self.running_var),
            mode == Mode::Train,
            Self::MOMENTUM,
            Self::EPS,
            true,
        )
    }
}
