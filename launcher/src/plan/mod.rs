//! Decides which rank trains on what, on which device, before anything is started. Pure.

mod memory;
mod table;

use std::fmt;
use std::ops::Range;

use comm::env::{StartedBy, World};
use job::config::{Config, Invalid, Placement};
use job::dataset::Outline;
use job::network::Network;
use job::{ExitCode, counted, shard};

use crate::topology::Topology;

pub use memory::Memory;

/// Which devices the command line asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// One trainer on each visible GPU.
    AllGpus,
    /// `ranks` trainers, one on each of the first GPUs unless they share GPUs.
    Gpus {
        /// Number of ranks on this node.
        ranks: usize,
    },
    /// Trainers on the CPU.
    Cpu {
        /// Number of ranks on this node.
        ranks: usize,
    },
}

impl Request {
    /// Returns the request that the values of `--cpu` and `--gpus` make; at most one of them is given.
    pub const fn of(cpu: Option<usize>, gpus: Option<usize>) -> Self {
        match (cpu, gpus) {
            (Some(ranks), _) => Self::Cpu { ranks },
            (None, Some(ranks)) => Self::Gpus { ranks },
            (None, None) => Self::AllGpus,
        }
    }
}

/// What trainers compute on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// A part of the CPU's cores.
    Cpu,
    /// The GPU whose index is the local rank, modulo the number of visible GPUs if ranks share GPUs.
    Cuda,
}

impl Device {
    /// Returns the value for the trainer's `--device`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
        }
    }
}

/// Why a job cannot be planned.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// No GPU, and the CPU was not asked for.
    #[error(
        "no GPU is visible here; to train on the CPU, pass --cpu N: N trainers share {}",
        counted(*cores, "core")
    )]
    NoGpu {
        /// Cores that this process may use.
        cores: usize,
    },
    /// Fewer GPUs than asked for.
    #[error(
        "--gpus {asked}, but {} visible here; ask for at most that many, or train on the CPU with \
         --cpu {asked}",
        gpus(*visible)
    )]
    TooFewGpus {
        /// Number of GPUs asked for.
        asked: usize,
        /// Number of visible GPUs.
        visible: usize,
    },
    /// A value of the configuration does not fit the device or the number of ranks.
    #[error(transparent)]
    Invalid(#[from] Invalid),
}

fn gpus(count: usize) -> String {
    match count {
        0 => "no GPU is".to_owned(),
        1 => "1 GPU is".to_owned(),
        more => format!("{more} GPUs are"),
    }
}

impl PlanError {
    /// Returns the exit code of the launcher.
    pub const fn exit_code(&self) -> ExitCode {
        match self {
            Self::NoGpu { .. } | Self::TooFewGpus { .. } => ExitCode::Setup,
            Self::Invalid(_) => ExitCode::Usage,
        }
    }
}

/// How the ranks of a job are distributed over nodes, and which node this is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Index of this node.
    pub node_rank: usize,
    /// Number of ranks of each node, in order.
    pub ranks_per_node: Vec<usize>,
}

impl Layout {
    /// Creates the layout of a single node with `ranks` ranks.
    pub fn single(ranks: usize) -> Self {
        Self { node_rank: 0, ranks_per_node: vec![ranks] }
    }

    /// Returns the number of ranks of the job.
    pub fn world_size(&self) -> usize {
        self.ranks_per_node.iter().sum()
    }

    /// Returns the ranks of `node`.
    pub fn ranks_of(&self, node: usize) -> Range<usize> {
        let first = self.ranks_per_node[..node].iter().sum();
        first..first + self.ranks_per_node[node]
    }
}

/// Something about a plan that the user may not have intended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Warning {
    /// This node has more ranks than cores.
    SharedCores {
        /// What the ranks compute on.
        device: Device,
        /// Number of ranks of this node.
        ranks: usize,
        /// Number of cores that this process may use.
        cores: usize,
    },
    /// An epoch is a single step.
    LargeBatch {
        /// Images per step, over all ranks.
        global_batch_size: usize,
        /// Images of the training set.
        train_images: usize,
    },
}

/// One rank's share of the job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RankPlan {
    /// The rank's place in the job.
    pub world: World,
    /// Logical CPUs that the rank is pinned to; empty: not pinned.
    pub cpus: Vec<usize>,
    /// Number of training images that the rank processes per epoch.
    pub train_images: usize,
    /// Indices of the test images that the rank evaluates.
    pub test_images: Range<usize>,
}

/// The plan of a job, as one of its nodes needs it.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// What all trainers compute on.
    pub device: Device,
    /// Name of the backend over which ranks communicate.
    pub backend: &'static str,
    /// OpenMP threads of each rank.
    pub threads_per_rank: usize,
    /// Number of ranks of each node.
    pub layout: Layout,
    /// The ranks of this node, in order.
    pub ranks: Vec<RankPlan>,
    /// Number of training images.
    pub train_images: usize,
    /// Number of test images.
    pub test_images: usize,
    /// Largest number of images that a rank puts through the network at once.
    pub batch_size_per_rank: usize,
    /// Microbatches per step.
    pub grad_accum_steps: usize,
    /// Images per step of all ranks together.
    pub global_batch_size: usize,
    /// Steps per epoch, including the one of the last, smaller batch.
    pub steps_per_epoch: usize,
    /// Number of images of the last global batch of an epoch.
    pub last_batch_size: usize,
    /// Passes over the training set.
    pub epochs: usize,
    /// Steps of the whole run.
    pub total_steps: u64,
    /// Number of trainable parameters.
    pub parameter_count: usize,
    /// Estimated memory of a rank.
    pub memory: Memory,
    /// Warnings about what may not be as intended.
    pub warnings: Vec<Warning>,
}

impl Plan {
    /// Plans a job of `config` on `device`, with the ranks of `layout`. `topology` is that of this node.
    ///
    /// # Errors
    /// [`PlanError`] when the configuration does not fit the device or the ranks.
    pub fn new(
        config: &Config,
        data: &Outline,
        device: Device,
        layout: Layout,
        topology: &Topology,
    ) -> Result<Self, PlanError> {
        let on_gpus = device == Device::Cuda;
        let on_several_machines = layout.ranks_per_node.len() > 1;
        let ranks = Placement { on_gpus, on_several_machines, under_mpi: false };
        let backend = config.comm.backend.transport(ranks)?.as_str();
        config.performance.check_device(on_gpus)?;
        let world_size = layout.world_size();
        config.train.check_shared_by(world_size)?;
        let local = layout.ranks_of(layout.node_rank);
        let threads_per_rank = (topology.usable() / local.len()).max(1);
        let [train_images, test_images] = data.images;
        let global_batch_size = config.train.global_batch_size(world_size);
        let batch_size_per_rank = config.train.microbatch_size(world_size);
        let steps_per_epoch = shard::steps_per_epoch(train_images, global_batch_size);
        let run_steps = (steps_per_epoch * config.train.epochs) as u64;
        let network = Network::new(&config.model, data.shape, data.classes);
        let images = train_images + test_images;
        let ranks = local.clone().enumerate().map(|(local_rank, rank)| RankPlan {
            world: World {
                rank,
                world_size,
                local_rank,
                local_world_size: local.len(),
                started_by: StartedBy::Launcher,
            },
            cpus: pinned_cpus(topology, local_rank, local.len(), threads_per_rank),
            train_images: images_per_epoch(train_images, global_batch_size, rank, world_size),
            test_images: shard::evaluation_shard(test_images, rank, world_size),
        });
        Ok(Self {
            device,
            backend,
            threads_per_rank,
            ranks: ranks.collect(),
            train_images,
            test_images,
            batch_size_per_rank,
            grad_accum_steps: config.train.microbatches(world_size),
            global_batch_size,
            steps_per_epoch,
            last_batch_size: train_images - steps_per_epoch.saturating_sub(1) * global_batch_size,
            epochs: config.train.epochs,
            total_steps: config.train.max_steps.map_or(run_steps, |max| max.min(run_steps)),
            parameter_count: network.parameter_count(),
            memory: Memory::estimate(config, &network, images, batch_size_per_rank),
            warnings: warnings(topology, device, local.len(), train_images, global_batch_size),
            layout,
        })
    }

    /// Returns the number of ranks of the job.
    pub fn world_size(&self) -> usize {
        self.layout.world_size()
    }
}

/// Returns the device that `request` asks for, and the number of ranks on this node.
///
/// `visible` is the number of visible GPUs, ignored if `request` is for the CPU. `shares_gpus`: whether NCCL
/// is configured to allow several ranks on one GPU.
///
/// # Errors
/// [`PlanError`] when there are too few GPUs.
pub fn devices(
    request: Request,
    visible: usize,
    shares_gpus: bool,
    topology: &Topology,
) -> Result<(Device, usize), PlanError> {
    match request {
        Request::Cpu { ranks } => Ok((Device::Cpu, ranks)),
        Request::Gpus { ranks: asked } if asked > visible && !(shares_gpus && visible > 0) => {
            Err(PlanError::TooFewGpus { asked, visible })
        }
        Request::Gpus { ranks } => Ok((Device::Cuda, ranks)),
        Request::AllGpus if visible == 0 => Err(PlanError::NoGpu { cores: topology.usable() }),
        Request::AllGpus => Ok((Device::Cuda, visible)),
    }
}

fn images_per_epoch(len: usize, global_batch: usize, rank: usize, world_size: usize) -> usize {
    let batches = (0..len)
        .step_by(global_batch)
        .filter_map(|offset| shard::next_batch(len, offset, global_batch, rank, world_size));
    batches.map(|batch| batch.local.len()).sum()
}

/// Returns the logical CPUs that a rank is pinned to. Each rank has its cores to itself, hyperthreads
/// included. With more ranks than cores, ranks share cores in round-robin order. Under a CPU quota no rank is
/// pinned: other jobs would be pinned to the same first cores.
fn pinned_cpus(topology: &Topology, rank: usize, world_size: usize, threads: usize) -> Vec<usize> {
    let cores = &topology.cores;
    if topology.quota.is_some() || cores.is_empty() {
        return Vec::new();
    }
    let mine = if world_size > cores.len() {
        let core = rank % cores.len();
        &cores[core..=core]
    } else {
        &cores[rank * threads..(rank + 1) * threads]
    };
    mine.concat()
}

fn warnings(
    topology: &Topology,
    device: Device,
    local_world_size: usize,
    train_images: usize,
    global_batch_size: usize,
) -> Vec<Warning> {
    let mut warnings = Vec::new();
    let cores = topology.usable();
    if local_world_size > cores {
        warnings.push(Warning::SharedCores { device, ranks: local_world_size, cores });
    }
    if global_batch_size > train_images {
        warnings.push(Warning::LargeBatch { global_batch_size, train_images });
    }
    warnings
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SharedCores { device, ranks, cores } => {
                let what = match device {
                    Device::Cpu => "each step takes longer than with fewer ranks",
                    Device::Cuda => "data may not keep up with the GPUs",
                };
                write!(f, "{ranks} ranks share {}: {what}", counted(*cores, "core"))
            }
            Self::LargeBatch { global_batch_size, train_images } => write!(
                f,
                "the global batch of {global_batch_size} is larger than the training set of \
                 {train_images}: an epoch is one step"
            ),
        }
    }
}

#[cfg(test)]
mod tests;
