//! Which device a rank works on, and with how many threads.

use comm::bootstrap::Backend;
use comm::env::{StartedBy, World};
use job::config::{self, Invalid, Performance, Transport, Whereabouts};
use tch::Device;

use crate::{Result, TrainError};

/// Where to train.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum DeviceKind {
    /// On a GPU where there is one.
    Auto,
    /// On the CPU.
    Cpu,
    /// On the GPU with this rank's local number.
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
            "rank {} wants GPU {} and {count} are visible; start fewer ranks, or train on the CPU \
             with --device cpu",
            world.rank, index
        )));
    }
    torch_ext::use_cuda_device(index)?;
    Ok(Device::Cuda(index))
}

/// The number of this rank's GPU among the `visible` that it sees. Under `srun` and `mpirun` a rank that sees
/// one has been given it: `--gpus-per-task=1` shows each its own, as number 0.
fn gpu_of(world: World, visible: usize, shares_gpus: bool) -> usize {
    match world.started_by {
        StartedBy::Mpirun | StartedBy::Srun if visible == 1 => 0,
        _ if shares_gpus => world.local_rank % visible.max(1),
        _ => world.local_rank,
    }
}

/// On a GPU, puts products of fp32 on tensor cores where the configuration allows that. On the CPU, has
/// activations of one step reuse the memory of the step before.
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

/// Limits libtorch to this rank's share of the cores, where the launcher has not done so. Once a process.
pub fn limit_threads(world: World) {
    limit_own_threads(world);
    tch::set_num_interop_threads(1);
}

/// The same for a rank that is a thread: of what that thread computes. Once a thread.
pub fn limit_own_threads(world: World) {
    let limit = std::env::var("OMP_NUM_THREADS").ok().and_then(|text| text.parse::<i32>().ok());
    // `mpirun` and `srun` may have bound each rank to cores of its own: then those are its share.
    let allowed = std::thread::available_parallelism().map_or(1, usize::from);
    let online = cores_online();
    let share = if allowed < online { allowed } else { allowed / world.local_world_size };
    let share = i32::try_from(share).unwrap_or(i32::MAX);
    tch::set_num_threads(limit.unwrap_or(share).max(1));
}

/// Cores of the machine, whoever may use them.
fn cores_online() -> usize {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    text.lines().filter(|line| line.starts_with("processor")).count()
}

/// The backend that `comm` means here.
///
/// # Errors
/// When it does not serve `device`.
pub fn backend(
    comm: &config::Comm,
    device: Device,
    world: World,
) -> std::result::Result<Backend, Invalid> {
    let ranks = Whereabouts {
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
        // The launcher shows all to all: this one is missing.
        assert_eq!(gpu(StartedBy::Launcher, 1, false), 2);
    }
}
