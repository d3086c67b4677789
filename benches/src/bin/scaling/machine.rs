//! The machine on which this runs, and the versions of the software.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::plan::Device;

/// The hardware, and the kernel's version.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// The processor's name.
    pub cpu: String,
    /// Number of logical CPUs.
    pub logical_cpus: usize,
    /// Bytes of main memory.
    pub memory_bytes: u64,
    /// Linux's version, without a distribution's or provider's suffix.
    pub kernel: String,
    /// Name, memory and driver of each GPU, if GPUs were used.
    pub gpus: Vec<String>,
}

/// The software.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Versions {
    /// The commit of the sources, marked `-dirty` if they were changed since.
    pub lockstep: String,
    /// The version of the Rust compiler.
    pub rustc: String,
    /// The versions that the peers report; `null` without peers.
    pub peer: Option<Value>,
}

impl Machine {
    /// Collects the data of this machine.
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
    /// Collects the versions. Without sources at run time, the commit is the one from which this program was
    /// built.
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

/// Returns `6.1.44` for `6.1.44-something`.
fn version_of(release: &str) -> &str {
    release.trim().split('-').next().unwrap_or_default()
}

/// Returns the current time in UTC, as RFC 3339.
pub fn now() -> String {
    OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default()
}

/// Returns the number of GPUs that a program started from here can see.
pub fn visible_gpus() -> usize {
    visible(gpus().len(), std::env::var("CUDA_VISIBLE_DEVICES").ok().as_deref())
}

/// Counts GPUs as CUDA does: the list ends at the first entry that is not valid.
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

/// Returns what `command` prints; empty where it cannot be run or fails.
fn output(command: &mut Command) -> String {
    let ended = command.output().ok().filter(|ended| ended.status.success());
    ended.map_or_else(String::new, |ended| String::from_utf8_lossy(&ended.stdout).into_owned())
}

/// Returns all values of a key in a file of `key : value` lines.
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
