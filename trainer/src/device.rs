//! The device of a rank, its number of threads, and its communication backend.

use comm::bootstrap::Backend;
use comm::env::{StartedBy, World};
use job::config::{self, Invalid, Performance, Placement, Transport};
use tch::Device;

use crate::{Result, TrainError};

/// The kind of device to train on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum DeviceKind {
    /// A GPU if there is one, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// The GPU with this rank's local number.
    Cuda,
}

/// Opens the device of this rank.
///
/// # Errors
/// [`TrainError::Setup`] when a GPU is wanted and cannot be had.
pub fn open(kind: DeviceKind, world: World) -> Result<Device> {
    if kind == DeviceKind::Cpu || (kind == DeviceKind::Auto && !has_nvidia_device()) {
        return Ok(Device::Cpu);
    }
    torch_ext::load_cuda().map_err(|error| {
        TrainError::Setup(format!(
            "libtorch's GPU library cannot be opened: {error}; run `make setup` on this machine, \
             or train on the CPU with --device cpu"
        ))
    })?;
    let count = usize::try_from(tch::Cuda::device_count()).unwrap_or(0);
    let index = gpu_of(world, count, comm::env::shares_gpus());
    if index >= count {
        return Err(TrainError::Setup(format!(
            "rank {} needs GPU {} (counted from 0); number of visible GPUs: {count}; start fewer ranks, or \
             train on the CPU with --device cpu",
            world.rank, index
        )));
    }
    torch_ext::use_cuda_device(index)?;
    Ok(Device::Cuda(index))
}

/// Returns the index of this rank's GPU among the `visible` ones. Under `srun` and `mpirun` a rank that
/// sees a single GPU has been assigned it: with `--gpus-per-task=1` each rank sees only its own, as number
/// 0. `shares_gpus`: whether several ranks may use the same GPU.
fn gpu_of(world: World, visible: usize, shares_gpus: bool) -> usize {
    match world.started_by {
        StartedBy::Mpirun | StartedBy::Srun if visible == 1 => 0,
        _ if shares_gpus => world.local_rank % visible.max(1),
        _ => world.local_rank,
    }
}

/// On a GPU, lets fp32 matrix products use tensor cores (TF32) if the configuration allows it. On the CPU,
/// keeps freed memory in the process, so that the activations of a step reuse that of the step before.
///
/// # Errors
/// When libtorch refuses.
pub fn tune(device: Device, performance: &Performance) -> Result<()> {
    if device.is_cuda() {
        torch_ext::set_tf32(performance.tf32)?;
    } else {
        torch_ext::keep_freed_memory();
    }
    Ok(())
}

fn has_nvidia_device() -> bool {
    std::path::Path::new("/dev/nvidiactl").exists()
}

/// Limits libtorch's threads to this rank's share of the cores, or to `OMP_NUM_THREADS` if it is set, as by
/// the launcher. To be called once per process.
pub fn limit_threads(world: World) {
    limit_own_threads(world);
    tch::set_num_interop_threads(1);
}

/// Like [`limit_threads`], for a rank that is a thread: limits the threads of what that thread computes. To
/// be called once per thread.
pub fn limit_own_threads(world: World) {
    let limit = std::env::var("OMP_NUM_THREADS").ok().and_then(|text| text.parse::<i32>().ok());
    // `mpirun` and `srun` may have bound each rank to cores of its own, which are then its share.
    let allowed = std::thread::available_parallelism().map_or(1, usize::from);
    let online = cores_online();
    let share = if allowed < online { allowed } else { allowed / world.local_world_size };
    let share = i32::try_from(share).unwrap_or(i32::MAX);
    tch::set_num_threads(limit.unwrap_or(share).max(1));
}

/// Returns the number of online logical CPUs of the machine, regardless of this process's affinity.
fn cores_online() -> usize {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    text.lines().filter(|line| line.starts_with("processor")).count()
}

/// Returns the backend that `comm.backend` selects for this device and these ranks.
///
/// # Errors
/// When the configured backend does not support the device or the placement of ranks.
pub fn backend(
    comm: &config::Comm,
    device: Device,
    world: World,
) -> std::result::Result<Backend, Invalid> {
    let ranks = Placement {
        on_gpus: device.is_cuda(),
        on_several_machines: world.local_world_size < world.world_size,
        under_mpi: matches!(world.started_by, StartedBy::Mpirun | StartedBy::Srun),
    };
    Ok(match (comm.backend.transport(ranks)?, device) {
        (Transport::Nccl, Device::Cuda(device)) => Backend::Nccl { device },
        (Transport::Mpi, _) => Backend::Mpi { hierarchical: comm.hierarchical },
        _ => Backend::Shm,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rank_takes_the_gpu_of_its_local_number_or_the_only_one_it_was_given() {
        let gpu = |started_by, visible, shares_gpus| {
            let (rank, world_size, local_rank, local_world_size) = (6, 8, 2, 4);
            let world = World { rank, world_size, local_rank, local_world_size, started_by };
            gpu_of(world, visible, shares_gpus)
        };
        for started_by in [StartedBy::Launcher, StartedBy::Mpirun, StartedBy::Srun] {
            assert_eq!(gpu(started_by, 4, false), 2);
            assert_eq!(gpu(started_by, 2, true), 0);
        }
        assert_eq!(gpu(StartedBy::Srun, 1, false), 0);
        assert_eq!(gpu(StartedBy::Mpirun, 1, false), 0);
        // The launcher makes all GPUs visible to all ranks, so the GPU of this rank is missing.
        assert_eq!(gpu(StartedBy::Launcher, 1, false), 2);
    }
}
