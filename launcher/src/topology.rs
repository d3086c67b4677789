//! The CPU cores that this process may use.
//!
//! Honours the affinity mask (`taskset`, a cgroup's cpuset, Slurm) and a cgroup's CPU quota (what
//! `docker --cpus` sets). Reads `/sys`; decides nothing.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use rustix::thread::{CpuSet, sched_getaffinity};

/// A physical core: the logical CPUs on it that this process may use, ascending.
pub type Core = Vec<usize>;

/// The cores that this process may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topology {
    /// Sorted by package, then by first CPU.
    pub cores: Vec<Core>,
    /// Number of cores that the CPU quota is worth, if lower than the number of `cores`. Other processes then
    /// use the same cores, so pinning would pile up on the first ones.
    pub quota: Option<usize>,
}

impl Topology {
    /// Detects the cores of this machine.
    pub fn detect() -> Self {
        let allowed = allowed_cpus();
        // The standard library honours the quotas of both cgroup versions, besides the mask.
        let parallelism =
            std::thread::available_parallelism().map_or(allowed.len(), |count| count.get());
        let cores = group(&allowed, |cpu| core_key(Path::new("/sys/devices/system/cpu"), cpu));
        let limited = parallelism < allowed.len() && parallelism < cores.len();
        Self { quota: limited.then_some(parallelism), cores }
    }

    /// Returns how many cores' worth of computing time this process may use, at least 1.
    pub fn usable(&self) -> usize {
        self.quota.unwrap_or(self.cores.len()).max(1)
    }
}

/// Package of a CPU, and the first CPU of its core.
type CoreKey = (usize, usize);

fn allowed_cpus() -> Vec<usize> {
    match sched_getaffinity(None) {
        Ok(mask) => (0..CpuSet::MAX_CPU).filter(|cpu| mask.is_set(*cpu)).collect(),
        // There are more CPUs than the mask can hold: uses the standard library's count.
        Err(_) => (0..std::thread::available_parallelism().map_or(1, |n| n.get())).collect(),
    }
}

fn group(cpus: &[usize], key: impl Fn(usize) -> CoreKey) -> Vec<Core> {
    let mut cores: BTreeMap<CoreKey, Core> = BTreeMap::new();
    for cpu in cpus {
        cores.entry(key(*cpu)).or_default().push(*cpu);
    }
    cores.into_values().collect()
}

/// Returns the package and the core of a CPU, as found in `root`, the folder of CPUs in `/sys`. Where nothing
/// is found, each CPU counts as a core of package 0.
fn core_key(root: &Path, cpu: usize) -> CoreKey {
    let read = |name: &str| {
        let path = root.join(format!("cpu{cpu}/topology/{name}"));
        fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
    };
    let package = read("physical_package_id").and_then(|text| text.parse().ok()).unwrap_or(0);
    let siblings = read("thread_siblings_list");
    let first = siblings.as_deref().and_then(|list| list.split(['-', ',']).next()?.parse().ok());
    (package, first.unwrap_or(cpu))
}

/// Formats a list of CPUs as `taskset` does: `0-3,8`.
pub fn cpu_list(cpus: &[usize]) -> String {
    let mut ranges: Vec<(usize, usize)> = Vec::new();
    let mut sorted = cpus.to_vec();
    sorted.sort_unstable();
    for cpu in sorted {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == cpu => *last = cpu,
            _ => ranges.push((cpu, cpu)),
        }
    }
    let words: Vec<_> = ranges
        .into_iter()
        .map(
            |(first, last)| {
                if first == last { first.to_string() } else { format!("{first}-{last}") }
            },
        )
        .collect();
    words.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hyperthreads_are_grouped_by_package_and_core() {
        // Two packages of two cores; CPU n and n + 4 share a core.
        let key = |cpu: usize| ((cpu % 4) / 2, cpu % 4);
        let cores = group(&[0, 1, 2, 3, 4, 5, 6, 7], key);
        assert_eq!(cores, [vec![0, 4], vec![1, 5], vec![2, 6], vec![3, 7]]);
        assert_eq!(group(&[1, 5, 6], key), [vec![1, 5], vec![6]]);
    }

    #[test]
    fn sys_is_read_and_its_absence_is_one_core_a_cpu() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("cpu5/topology");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("physical_package_id"), "1\n").unwrap();
        fs::write(folder.join("thread_siblings_list"), "1,5\n").unwrap();
        assert_eq!(core_key(root.path(), 5), (1, 1));
        assert_eq!(core_key(root.path(), 6), (0, 6));
    }

    #[test]
    fn this_machine_has_a_core() {
        let topology = Topology::detect();
        assert!(topology.usable() >= 1);
        assert!(topology.cores.iter().all(|core| !core.is_empty()));
    }

    #[test]
    fn lists_are_written_as_ranges() {
        assert_eq!(cpu_list(&[3, 0, 1, 2, 8]), "0-3,8");
        assert_eq!(cpu_list(&[5]), "5");
    }
}
