//! Memory that is available to processes of this machine, and how many of them the kernel has killed for lack
//! of it.

use std::fs;
use std::path::{Path, PathBuf};

/// Returns the available memory in bytes: that of the machine, or what the limits of this process's control
/// groups leave, if that is less.
pub fn available() -> u64 {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let machine = field(&meminfo, "MemAvailable:").map_or(u64::MAX, |kib| kib * 1024);
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    machine.min(left_by_groups(&groups, Path::new("/sys/fs/cgroup")))
}

/// Returns how many processes in this process's control group the kernel has killed so far because memory ran
/// out; `None` where nothing counts them. Version 2 of control groups includes descendants of the group.
pub fn oom_kills() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    oom_kills_in(&groups, Path::new("/sys/fs/cgroup"))
}

fn oom_kills_in(groups: &str, root: &Path) -> Option<u64> {
    groups.lines().find_map(|line| {
        let (version, mount, group) = memory_group(line, root)?;
        // In a container the path may be that of the host, as in `left_by_groups`.
        [group, mount].iter().find_map(|folder| {
            field(&fs::read_to_string(folder.join(version.events)).ok()?, "oom_kill")
        })
    })
}

/// Returns the version, the mount and the folder of the control group in `line`, one of `/proc/PID/cgroup`;
/// `None` if that hierarchy does not account for memory.
fn memory_group(line: &str, root: &Path) -> Option<(&'static Version, PathBuf, PathBuf)> {
    let mut parts = line.splitn(3, ':').skip(1);
    let (controllers, path) = (parts.next()?, parts.next()?);
    let version = match controllers {
        "" => &V2,
        v1 if v1.split(',').any(|name| name == "memory") => &V1,
        _ => return None,
    };
    let mount = root.join(version.mount);
    let group = mount.join(path.trim_start_matches('/'));
    Some((version, mount, group))
}

/// Returns the bytes that the limits of a process's control groups leave; `u64::MAX` without limits. `groups`
/// is the content of `/proc/PID/cgroup`, `root` the folder where control groups are mounted.
///
/// A group's limit also holds for the groups in it, so all ancestors count: Slurm limits the job and the
/// step, and systemd has groups of its own around them. In a container the path may be one of the host that
/// does not exist; the container's own limit is at `root` then.
fn left_by_groups(groups: &str, root: &Path) -> u64 {
    let limits = groups.lines().filter_map(|line| {
        let (version, mount, group) = memory_group(line, root)?;
        let within = group.ancestors().take_while(|folder| folder.starts_with(&mount));
        within.filter_map(|folder| version.left(folder.to_path_buf())).min()
    });
    limits.min().unwrap_or(u64::MAX)
}

/// File names of one version of control groups, below the mount of all.
struct Version {
    mount: &'static str,
    limit: &'static str,
    used: &'static str,
    /// Key in `memory.stat` of the page cache that can be reclaimed when memory is needed.
    reclaimable: &'static str,
    /// File that counts the kills.
    events: &'static str,
}

/// <https://docs.kernel.org/admin-guide/cgroup-v1/memory.html>
const V1: Version = Version {
    mount: "memory",
    limit: "memory.limit_in_bytes",
    used: "memory.usage_in_bytes",
    reclaimable: "total_inactive_file",
    events: "memory.oom_control",
};

/// <https://docs.kernel.org/admin-guide/cgroup-v2.html#memory-interface-files>
const V2: Version = Version {
    mount: "",
    limit: "memory.max",
    used: "memory.current",
    reclaimable: "inactive_file",
    events: "memory.events",
};

impl Version {
    /// Returns the bytes that the limit of the group at `folder` leaves, where reclaimable pages count as
    /// free; `None` without a limit.
    fn left(&self, folder: PathBuf) -> Option<u64> {
        let read = |name: &str| fs::read_to_string(folder.join(name));
        let number = |name: &str| read(name).ok()?.trim().parse::<u64>().ok();
        let limit = number(self.limit)?;
        let reclaimable = field(&read("memory.stat").unwrap_or_default(), self.reclaimable);
        let used = number(self.used)?.saturating_sub(reclaimable.unwrap_or(0));
        Some(limit.saturating_sub(used))
    }
}

/// Returns the number after `name` on its line.
fn field(text: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().map(str::split_whitespace);
    lines.find_map(|mut words| (words.next()? == name).then(|| words.next()?.parse().ok())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn write(folder: &Path, files: &[(&str, &str)]) {
        fs::create_dir_all(folder).unwrap();
        for (name, text) in files {
            fs::write(folder.join(name), text).unwrap();
        }
    }

    #[test]
    fn the_narrowest_group_around_a_process_counts() {
        let root = tempfile::tempdir().unwrap();
        let job = root.path().join("system.slice/job_7");
        let max_and_current = [("memory.max", "104857600\n"), ("memory.current", "31457280\n")];
        write(&job, &max_and_current);
        write(&job, &[("memory.stat", "anon 5\ninactive_file 10485760\nactive_file 3\n")]);
        write(&job.join("step_0"), &[("memory.max", "max\n"), ("memory.current", "20971520\n")]);
        let left = |path: &str| left_by_groups(&format!("0::{path}\n"), root.path());
        assert_eq!(left("/system.slice/job_7/step_0"), 80 * MIB);
        assert_eq!(left("/system.slice"), u64::MAX);
        write(root.path(), &[("memory.max", "10485760\n"), ("memory.current", "20971520\n")]);
        assert_eq!(left("/not/seen/from/this/container"), 0);
    }

    #[test]
    fn kills_for_want_of_memory_are_counted_by_either_version_or_unknown() {
        let root = tempfile::tempdir().unwrap();
        let kills = |groups: &str| oom_kills_in(groups, root.path());
        assert_eq!(kills("0::/job\n"), None);
        let v1 = "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n";
        write(&root.path().join("memory/job"), &[("memory.oom_control", v1)]);
        assert_eq!(kills("9:cpu:/job\n8:memory:/job\n0::/\n"), Some(2));
        let v2 = "low 0\nhigh 4\nmax 5\noom 1\noom_kill 3\noom_group_kill 7\n";
        write(&root.path().join("job"), &[("memory.events", v2)]);
        assert_eq!(kills("0::/job\n"), Some(3));
        write(root.path(), &[("memory.events", v2)]);
        assert_eq!(kills("0::/not/seen/from/this/container\n"), Some(3));
    }

    #[test]
    fn groups_of_the_first_version_count_too() {
        let root = tempfile::tempdir().unwrap();
        let limited = [
            ("memory.limit_in_bytes", "104857600\n"),
            ("memory.usage_in_bytes", "52428800\n"),
            ("memory.stat", "inactive_file 1\ntotal_inactive_file 10485760\n"),
        ];
        write(&root.path().join("memory/job"), &limited);
        let groups = "9:cpu,cpuacct:/job\n8:memory:/job/step\n0::/\n";
        assert_eq!(left_by_groups(groups, root.path()), 60 * MIB);
    }
}
