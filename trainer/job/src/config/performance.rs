//! What arithmetic is done in, and what makes it fast.

use serde::{Deserialize, Serialize};

use super::Invalid;

/// What the forward and backward pass compute in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// bf16 where the hardware of all ranks computes in it, else fp32.
    #[default]
    Auto,
    /// 32 bits.
    Fp32,
    /// bfloat16 where it is safe, by autocast.
    Bf16,
    /// Half precision where it is safe, by autocast, with a loss that is scaled so that small gradients
    /// survive.
    Fp16,
}

/// What makes a step faster without changing what it computes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Performance {
    /// Whether taps of a kernel that never see a pixel at this image size are left out: neither
    /// convolved, communicated nor stepped. Files show them all the same.
    pub live_taps: bool,
    /// How convolutions are computed on the CPU.
    pub convolution: Convolution,
    /// Whether convolutions and matrix products that stay in fp32 round their operands to TF32 on a
    /// GPU.
    pub tf32: bool,
    /// Whether batch norm and the addition and ReLU that follow are one or two kernels on a GPU, in training.
    pub fused_batch_norm: bool,
    /// Whether steps on a GPU are captured into a CUDA graph and replayed.
    pub cuda_graph: CudaGraph,
}

impl Performance {
    /// Whether it can be had where ranks are.
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

/// Whether a step is one CUDA graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CudaGraph {
    /// On a GPU, where the step can be captured.
    Auto,
    /// Yes: what stands in the way is an error.
    On,
    /// No.
    Off,
}

/// How convolutions are computed on the CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Convolution {
    /// Each pass of each as was faster when measured before the first step. Results of two runs can
    /// differ by rounding.
    Auto,
    /// All by libtorch's convolution.
    Library,
    /// All as matrix products over unfolded input.
    Matmul,
    /// By Winograd's minimal filtering what can be (docs/convolutions.md). The rest by libtorch's.
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
