//! Where this runs, and what runs.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::plan::Device;

/// The hardware.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// The processor's name.
    pub cpu: String,
    /// Logical CPUs.
    pub logical_cpus: usize,
    /// Of main memory.
    pub memory_bytes: u64,
    /// Linux's version, without what a distribution or a provider adds.
    pub kernel: String,
    /// Name, memory and driver of each, where they were used.
    pub gpus: Vec<String>,
}

/// The software.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Versions {
    /// The commit of the sources, and whether they were changed since.
    pub lockstep: String,
    /// The compiler.
    pub rustc: String,
    /// What the peers say of theirs; `null` without peers.
    pub peer: Option<Value>,
}

impl Machine {
    /// Looks at this machine.
    pub fn look(device: Device) -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let cpus = read("/proc/cpuinfo");
        let total = values(&read("/proc/meminfo"), "MemTotal").next().unwrap_or_default();
        let kib: u64 = total.trim_end_matches(" kB").parse().unwrap_or(0);
        Self {
            cpu: values(&cpus, "model name").next().unwrap_or_default(),
            logical_cpus: values(&cpus, "processor").count(),
            memory_bytes: kib * 1024,
            kernel: version_of(&read("/proc/sys/kernel/osrelease")).to_owned(),
            gpus: if device == Device::Gpu { gpus() } else { Vec::new() },
        }
    }
}

impl Versions {
    /// Looks at the sources, whether they were changed since the commit; without sources it is the commit
    /// that this program was built in.
    pub fn look(peer: Option<Value>) -> Self {
        let sources = Path::new(env!("CARGO_MANIFEST_DIR"));
        let git = ["describe", "--always", "--dirty", "--abbrev=12"];
        let mut lockstep = first_line(Command::new("git").args(git).current_dir(sources));
        if lockstep.is_empty() {
            env!("LOCKSTEP_COMMIT").clone_into(&mut lockstep);
        }
        Self { lockstep, rustc: env!("LOCKSTEP_RUSTC").to_owned(), peer }
    }
}

/// `6.1.44` of `6.1.44-something`.
fn version_of(release: &str) -> &str {
    release.trim().split('-').next().unwrap_or_default()
}

/// The time, in UTC.
pub fn now() -> String {
    OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default()
}

/// GPUs that a program started from here sees.
pub fn visible_gpus() -> usize {
    visible(gpus().len(), std::env::var("CUDA_VISIBLE_DEVICES").ok().as_deref())
}

/// As CUDA does: the list ends at the first entry that is not valid.
fn visible(installed: usize, list: Option<&str>) -> usize {
    let is_valid = |entry: &&str| {
        let is_index = entry.trim().parse().is_ok_and(|index: usize| index < installed);
        is_index || ["GPU-", "MIG-"].iter().any(|kind| entry.trim().starts_with(kind))
    };
    list.map_or(installed, |list| list.split(',').take_while(is_valid).count())
}

fn gpus() -> Vec<String> {
    let query = ["--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"];
    output(Command::new("nvidia-smi").args(query)).lines().map(str::to_owned).collect()
}

fn first_line(command: &mut Command) -> String {
    output(command).lines().next().unwrap_or_default().to_owned()
}

/// What `command` prints; nothing where it cannot be run or fails.
fn output(command: &mut Command) -> String {
    let ended = command.output().ok().filter(|ended| ended.status.success());
    ended.map_or_else(String::new, |ended| String::from_utf8_lossy(&ended.stdout).into_owned())
}

/// All values of a key in a file of `key : value` lines.
fn values(text: &str, key: &str) -> impl Iterator<Item = String> {
    text.lines().filter_map(move |line| {
        let (found, value) = line.split_once(':')?;
        (found.trim() == key).then(|| value.trim().to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpus_that_are_hidden_do_not_count() {
        let lists = [None, Some("-1"), Some(""), Some("0,7,1"), Some("1, 0"), Some("GPU-aaaa")];
        assert_eq!(lists.map(|list| visible(2, list)), [2, 0, 0, 1, 2, 1]);
    }

    #[test]
    fn this_machine_has_cpus_and_memory() {
        let machine = Machine::look(Device::Cpu);
        assert!(machine.logical_cpus > 0 && machine.memory_bytes > 0);
    }

    #[test]
    fn a_key_is_the_whole_word_before_the_colon() {
        let text = "model\t: 167\nmodel name\t: A: b\n";
        assert_eq!(values(text, "model name").collect::<Vec<_>>(), ["A: b"]);
    }
}
