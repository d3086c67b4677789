//! Decides how many runs are executed at once, and on which CPUs and GPUs each of them. Pure.

use job::ExitCode;

use crate::error::LaunchError;
use crate::plan::{Device, PlanError};
use crate::topology::Topology;

/// Resources that a study may use.
#[derive(Debug)]
pub struct Resources<'a> {
    /// What runs compute on.
    pub device: Device,
    /// GPUs, or ranks on the CPU, that all runs together may use.
    pub ranks: usize,
    /// Number of runs at once that `--jobs` asks for, if given.
    pub jobs: Option<usize>,
    /// Topology of this machine.
    pub topology: &'a Topology,
    /// Value of `CUDA_VISIBLE_DEVICES`, if set.
    pub visible_devices: Option<&'a str>,
}

/// CPUs and GPUs for one run at a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// Logical CPUs that the run is pinned to; empty: all.
    pub cpus: Vec<usize>,
    /// Value of `CUDA_VISIBLE_DEVICES` for the run, if it uses GPUs.
    pub devices: Option<String>,
}

/// Returns as many slots for runs of `ranks_per_run` ranks as fit, or as `--jobs` asks for.
///
/// # Errors
/// [`LaunchError`] when there is no room for one run.
pub fn slots(resources: &Resources<'_>, ranks_per_run: usize) -> Result<Vec<Slot>, LaunchError> {
    let Resources { device, ranks, jobs, topology, visible_devices } = *resources;
    if ranks_per_run > ranks {
        return Err(match device {
            Device::Cuda => PlanError::TooFewGpus { asked: ranks_per_run, visible: ranks }.into(),
            Device::Cpu => wrong(format!(
                "a run of this study needs {ranks_per_run} ranks, but --cpu {ranks} allows fewer"
            )),
        });
    }
    let room = match device {
        Device::Cuda => ranks / ranks_per_run,
        Device::Cpu => (ranks.min(topology.usable()) / ranks_per_run).max(1),
    };
    let jobs = jobs.unwrap_or(room);
    let devices = match visible_devices {
        Some(list) => list.split(',').map(|name| name.trim().to_owned()).collect(),
        None => (0..ranks).map(|index| index.to_string()).collect::<Vec<_>>(),
    };
    // If `--jobs` asks for more runs than fit, runs share GPUs: the user knows that they are small.
    let devices_of = |job: usize| {
        let first = job % room * ranks_per_run;
        devices[first..first + ranks_per_run].join(",")
    };
    let slot = |job| Slot {
        cpus: cpus(topology, job, jobs),
        devices: (device == Device::Cuda).then(|| devices_of(job)),
    };
    Ok((0..jobs).map(slot).collect())
}

/// Returns the CPUs of slot `job`. Each slot has its cores to itself, as far as there are enough.
fn cpus(topology: &Topology, job: usize, jobs: usize) -> Vec<usize> {
    let cores = &topology.cores;
    // Under a CPU quota, other processes may be pinned to the same first cores: the kernel spreads the work.
    if jobs == 1 || cores.is_empty() || topology.quota.is_some() {
        return Vec::new();
    }
    let each = (topology.usable() / jobs).max(1);
    let first = job * each % cores.len();
    cores[first..(first + each).min(cores.len())].concat()
}

fn wrong(text: String) -> LaunchError {
    LaunchError::Study { exit_code: ExitCode::Usage, text }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Four cores of two logical CPUs each.
    fn topology() -> Topology {
        Topology { cores: (0..4).map(|core| vec![core, core + 4]).collect(), quota: None }
    }

    fn of(
        device: Device,
        ranks: usize,
        jobs: Option<usize>,
        each: usize,
    ) -> Result<Vec<Slot>, String> {
        let topology = topology();
        let visible_devices = (device == Device::Cuda).then_some("4,5, 6,7");
        let resources = Resources { device, ranks, jobs, topology: &topology, visible_devices };
        slots(&resources, each).map_err(|error| error.to_string())
    }

    fn slot(cpus: &[usize], devices: Option<&str>) -> Slot {
        Slot { cpus: cpus.to_vec(), devices: devices.map(str::to_owned) }
    }

    #[test]
    fn runs_at_the_same_time_have_cores_of_their_own() {
        let two = [slot(&[0, 4, 1, 5], None), slot(&[2, 6, 3, 7], None)];
        assert_eq!(of(Device::Cpu, 4, None, 2).unwrap(), two);
        assert_eq!(of(Device::Cpu, 4, Some(1), 2).unwrap(), [slot(&[], None)]);
        assert_eq!(of(Device::Cpu, 8, None, 1).unwrap().len(), 4, "no more than cores");
        let five = of(Device::Cpu, 8, Some(5), 1).unwrap();
        assert_eq!((five.len(), &five[4]), (5, &slot(&[0, 4], None)));
    }

    #[test]
    fn with_a_quota_the_kernel_places_runs() {
        let topology = Topology { quota: Some(4), ..topology() };
        assert_eq!((cpus(&topology, 0, 2), cpus(&topology, 1, 2)), (Vec::new(), Vec::new()));
    }

    #[test]
    fn runs_at_the_same_time_have_gpus_of_their_own() {
        let two = [slot(&[0, 4, 1, 5], Some("4,5")), slot(&[2, 6, 3, 7], Some("6,7"))];
        assert_eq!(of(Device::Cuda, 4, None, 2).unwrap(), two);
        assert_eq!(of(Device::Cuda, 3, None, 2).unwrap(), [slot(&[], Some("4,5"))]);
        let shared = of(Device::Cuda, 4, Some(3), 2).unwrap();
        let devices: Vec<_> = shared.iter().map(|slot| slot.devices.as_deref()).collect();
        assert_eq!(devices, [Some("4,5"), Some("6,7"), Some("4,5")]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        assert!(of(Device::Cuda, 1, None, 2).unwrap_err().contains("--gpus 2"));
        assert!(of(Device::Cpu, 1, None, 2).unwrap_err().contains("--cpu 1 allows fewer"));
    }
}
