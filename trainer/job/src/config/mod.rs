//! The configuration: its keys, their defaults and their ranges.
//!
//! [`load`] reads a file and applies overrides; whatever is wrong is named by file, line and dotted
//! path. Does not read the environment.

mod bucket_cap;
mod diff;
mod error;
mod keys;
mod load;
#[cfg(test)]
mod tests;
mod validate;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use bucket_cap::BucketCap;
pub use diff::{Difference, differences_in_training};
pub use error::{ConfigError, Place};
pub(crate) use keys::nearest;
pub use load::{load, to_yaml};
pub use validate::{Invalid, validate};

pub use crate::network::ModelName;

/// Everything that describes a run, but for how many ranks and where they are.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The network.
    pub model: Model,
    /// The images.
    pub data: Data,
    /// How long and in what portions.
    pub train: Train,
    /// How gradients become updates.
    pub optimizer: Optimizer,
    /// How the learning rate changes.
    pub schedule: Schedule,
    /// What the forward and backward pass compute in; parameters are always fp32.
    pub precision: Precision,
    /// When the run is saved.
    pub checkpoint: Checkpoint,
    /// What is recorded.
    pub metrics: Metrics,
    /// How ranks talk.
    pub comm: Comm,
    /// What makes a step faster without changing what it computes.
    pub performance: Performance,
}

/// The network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Model {
    /// Which one.
    pub name: ModelName,
    /// What comes before the first stage.
    pub stem: Stem,
    /// Whether the scale of a block's last batch norm starts at 0, so that blocks start as the
    /// identity.
    pub zero_init_residual: bool,
    /// The probability that a training step skips the last block; from the first block on it rises
    /// linearly to that.
    pub stochastic_depth: f64,
    /// The probability that training zeroes a number, where the network's paper has dropout; `null`:
    /// as published.
    pub dropout: Option<f64>,
    /// A state dict of torchvision's, as safetensors, to start from; `null`: random weights.
    pub from_torchvision: Option<PathBuf>,
}

impl Default for Model {
    fn default() -> Self {
        Self {
            name: ModelName::default(),
            stem: Stem::Notes,
            zero_init_residual: false,
            stochastic_depth: 0.0,
            dropout: None,
            from_torchvision: None,
        }
    }
}

/// What comes before the first stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stem {
    /// 3x3 convolution of stride 2, then 3x3 max-pool of stride 2.
    Notes,
    /// 3x3 convolution of stride 1, no pool.
    Cifar,
    /// 7x7 convolution of stride 2, then 3x3 max-pool of stride 2.
    Imagenet,
}

impl Stem {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Notes, Self::Cifar, Self::Imagenet];

    /// As in a configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Notes => "notes",
            Self::Cifar => "cifar",
            Self::Imagenet => "imagenet",
        }
    }
}

/// The images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Data {
    /// Which ones.
    pub dataset: Dataset,
    /// The folder that holds the files, or into which they are downloaded.
    pub root: PathBuf,
    /// Whether to download what is not there.
    pub download: bool,
    /// What to take when the data set cannot be had.
    pub fallback: Fallback,
    /// Only the first so many training images (of `image_folder`, evenly spread ones); `null`: all
    /// (10,000 synthetic ones).
    pub train_images: Option<usize>,
    /// Likewise test images; `null`: all (2,000 synthetic ones).
    pub test_images: Option<usize>,
    /// Of `image_folder`, the side to which images are brought; `null`: 32.
    pub image_size: Option<usize>,
    /// What is done to training images; each at most once.
    pub augment: Vec<Augment>,
}

impl Default for Data {
    fn default() -> Self {
        Self {
            dataset: Dataset::Cifar10,
            root: PathBuf::from("data"),
            download: true,
            fallback: Fallback::None,
            train_images: None,
            test_images: None,
            image_size: None,
            augment: Vec::new(),
        }
    }
}

/// A data set's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dataset {
    /// 50,000 and 10,000 photographs of 10 classes, 32x32.
    Cifar10,
    /// 50,000 and 10,000 photographs of 100 classes, 32x32.
    Cifar100,
    /// 60,000 and 10,000 pictures of clothes of 10 classes, grey, 28x28.
    FashionMnist,
    /// 73,257 and 26,032 photographs of house numbers' digits, 32x32.
    Svhn,
    /// PNG and JPEG files: `root/train/CLASS/*` and `root/test/CLASS/*`.
    ImageFolder,
    /// Learnable images of 10 classes, 32x32, made from `train.seed` in memory.
    Synthetic,
}

impl Dataset {
    /// Training and test images of a published data set; `None` where the user decides.
    pub const fn published_images(self) -> Option<[usize; 2]> {
        match self {
            Self::Cifar10 | Self::Cifar100 => Some([50_000, 10_000]),
            Self::FashionMnist => Some([60_000, 10_000]),
            Self::Svhn => Some([73_257, 26_032]),
            Self::ImageFolder | Self::Synthetic => None,
        }
    }
}

/// What to take when the data set cannot be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fallback {
    /// Nothing: exit 3.
    None,
    /// Synthetic images, with a warning.
    Synthetic,
}

/// A random change to a training image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Augment {
    /// Pads by 4 pixels of zero and cuts the image's size at a random place.
    Crop,
    /// Mirrors every second image.
    Flip,
    /// Blanks a square of 16x16 around a random pixel, with the mean colour.
    Cutout,
}

/// How long and in what portions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Train {
    /// Passes over the training set.
    pub epochs: usize,
    /// Images that a rank puts through the network at once.
    pub batch_size_per_rank: usize,
    /// Such microbatches a step, whose gradients are added up before ranks reduce them.
    pub grad_accum_steps: usize,
    /// Whether batch norm takes its statistics over the images of all ranks.
    pub sync_batch_norm: bool,
    /// Of initial weights, order of samples, augmentation and synthetic images.
    pub seed: u64,
    /// Stop after so many steps, evaluate and save; `null`: after the last epoch.
    pub max_steps: Option<u64>,
}

impl Default for Train {
    fn default() -> Self {
        Self {
            epochs: 20,
            batch_size_per_rank: 64,
            grad_accum_steps: 1,
            sync_batch_norm: false,
            seed: 0,
            max_steps: None,
        }
    }
}

impl Train {
    /// Images that `world_size` ranks together take a step.
    pub const fn global_batch_size(&self, world_size: usize) -> usize {
        self.batch_size_per_rank * self.grad_accum_steps * world_size
    }
}

/// How gradients become updates. Keys that an optimizer does not have must not be given.
///
/// [`load`] leaves every key of the chosen optimizer set, and every other one `None`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default = "Optimizer::unset", deny_unknown_fields)]
pub struct Optimizer {
    /// Which one.
    pub name: OptimizerName,
    /// The learning rate that the schedule starts from.
    pub lr: f64,
    /// AdamW: decoupled; SGD: added to the gradient.
    pub weight_decay: f64,
    /// Gradients of a larger norm, over all parameters, are scaled down to it; `null`: they are not.
    pub clip_grad_norm: Option<f64>,
    /// AdamW's, default [0.9, 0.999].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub betas: Option<[f64; 2]>,
    /// AdamW's, default 1e-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eps: Option<f64>,
    /// SGD's, default 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub momentum: Option<f64>,
    /// SGD's, default false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nesterov: Option<bool>,
}

impl Default for Optimizer {
    fn default() -> Self {
        let mut optimizer = Self::unset();
        optimizer.fill_in();
        optimizer
    }
}

impl Optimizer {
    /// The defaults before it is known which optimizer it is.
    fn unset() -> Self {
        Self {
            name: OptimizerName::Adamw,
            lr: 0.001,
            weight_decay: 0.01,
            clip_grad_norm: None,
            betas: None,
            eps: None,
            momentum: None,
            nesterov: None,
        }
    }

    /// Sets the keys of the chosen optimizer that are not given to their defaults.
    fn fill_in(&mut self) {
        match self.name {
            OptimizerName::Adamw => {
                self.betas.get_or_insert([0.9, 0.999]);
                self.eps.get_or_insert(1e-8);
            }
            OptimizerName::Sgd => {
                self.momentum.get_or_insert(0.0);
                self.nesterov.get_or_insert(false);
            }
        }
    }
}

/// An optimizer's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OptimizerName {
    /// Adam with decoupled weight decay.
    Adamw,
    /// Stochastic gradient descent, with momentum or without.
    Sgd,
}

/// How the learning rate changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Schedule {
    /// Its shape.
    pub name: ScheduleName,
    /// Steps over which the rate first rises linearly from 0.
    pub warmup_steps: u64,
}

impl Default for Schedule {
    fn default() -> Self {
        Self { name: ScheduleName::Constant, warmup_steps: 0 }
    }
}

/// A schedule's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleName {
    /// Always `optimizer.lr`.
    Constant,
    /// Half a cosine from `optimizer.lr` to 0 at the end of the run.
    Cosine,
}

/// What the forward and backward pass compute in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// 32 bits.
    Fp32,
    /// bfloat16 where it is safe, by autocast.
    #[default]
    Bf16,
    /// Half precision where it is safe, by autocast, with a loss that is scaled so that small gradients
    /// survive.
    Fp16,
}

/// When the run is saved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Checkpoint {
    /// Epochs between checkpoints; the last epoch is always saved.
    pub every_epochs: usize,
    /// How many of the newest to keep; the best is kept besides.
    pub keep: usize,
}

impl Default for Checkpoint {
    fn default() -> Self {
        Self { every_epochs: 1, keep: 3 }
    }
}

/// What is recorded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Metrics {
    /// Steps between `step` records.
    pub log_every: u64,
}

impl Default for Metrics {
    fn default() -> Self {
        Self { log_every: 10 }
    }
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
}

impl Default for Performance {
    fn default() -> Self {
        Self { live_taps: true, convolution: Convolution::Auto, tf32: true }
    }
}

/// How ranks talk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Comm {
    /// Over what.
    pub backend: CommBackend,
    /// Gradients are averaged in portions of at most so many MiB.
    pub bucket_cap_mib: BucketCap,
    /// What gradients are sent as.
    pub wire_dtype: WireDtype,
    /// Whether a portion is averaged while backward makes the next.
    pub overlap: Overlap,
    /// How long a rank waits for others before it names them and gives up.
    pub timeout_seconds: u64,
}

impl Default for Comm {
    fn default() -> Self {
        Self {
            backend: CommBackend::Auto,
            bucket_cap_mib: BucketCap::Auto,
            wire_dtype: WireDtype::Fp32,
            overlap: Overlap::Auto,
            timeout_seconds: 120,
        }
    }
}

/// What gradients are sent as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WireDtype {
    /// As they are.
    Fp32,
    /// Rounded to nearest: half the bytes.
    Bf16,
}

/// Whether gradients are averaged while backward goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Overlap {
    /// Where it is faster: not between CPU ranks that share memory.
    Auto,
    /// Yes.
    On,
    /// No: after backward.
    Off,
}

/// Over what ranks talk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CommBackend {
    /// `nccl` on GPUs; on the CPU `mpi` under `mpirun` or `srun`, else `shm`.
    Auto,
    /// Shared memory: CPU ranks of one machine.
    Shm,
    /// MPI: CPU ranks, across machines too.
    Mpi,
    /// NCCL: one rank a GPU.
    Nccl,
    /// As `auto`, but gradients stay where they are: ranks diverge. For measuring only.
    None,
}
