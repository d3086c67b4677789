//! The key `precision` and the section `performance`.

use serde::{Deserialize, Serialize};

use super::Invalid;

/// Dtype of the forward and backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// bf16 if the hardware of all ranks computes in it, else fp32.
    #[default]
    Auto,
    /// fp32.
    Fp32,
    /// bfloat16 where it is numerically safe, by autocast.
    Bf16,
    /// Half precision where it is numerically safe, by autocast, with loss scaling so that small gradients do
    /// not underflow.
    Fp16,
}

/// Options that make a step faster without changing what it computes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Performance {
    /// Whether taps of a kernel that never see a pixel at this image size are left out: they are neither
    /// convolved, communicated nor stepped. Files contain them all the same.
    pub live_taps: bool,
    /// How convolutions are computed on the CPU.
    pub convolution: Convolution,
    /// Whether convolutions and matrix products that stay in fp32 round their operands to TF32 on a
    /// GPU.
    pub tf32: bool,
    /// Whether batch norm with the addition and ReLU that follow is one or two kernels, in training on a GPU.
    pub fused_batch_norm: bool,
    /// Whether steps on a GPU are captured into a CUDA graph and replayed.
    pub cuda_graph: CudaGraph,
}

impl Performance {
    /// Checks that the options are available on the device of the ranks.
    ///
    /// # Errors
    /// When a CUDA graph is asked for on the CPU.
    pub fn check_device(&self, on_gpus: bool) -> Result<(), Invalid> {
        match self.cuda_graph {
            CudaGraph::On if !on_gpus => {
                let problem = "on is for GPUs; leave it at auto";
                Err(Invalid::new("performance.cuda_graph", problem))
            }
            _ => Ok(()),
        }
    }
}

/// Whether a step is captured into a CUDA graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CudaGraph {
    /// On a GPU, if the step can be captured.
    Auto,
    /// Always: a step that cannot be captured is an error.
    On,
    /// Never.
    Off,
}

/// How convolutions are computed on the CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Convolution {
    /// Each pass of each convolution by the method that was fastest when measured before the first step.
    /// Results of two runs can differ by rounding.
    Auto,
    /// All by libtorch's convolution.
    Library,
    /// All as matrix products over unfolded input.
    Matmul,
    /// By Winograd's minimal filtering where it applies (docs/convolutions.md), else by libtorch's
    /// convolution.
    Winograd,
}

impl Default for Performance {
    fn default() -> Self {
        Self {
            live_taps: true,
            convolution: Convolution::Auto,
            tf32: true,
            fused_batch_norm: true,
            cuda_graph: CudaGraph::Auto,
        }
    }
}
