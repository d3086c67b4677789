//! Counts the GPUs that CUDA will show to a trainer.
//!
//! `nvidia-smi -L` lists the GPUs of the driver, without those that a container or Slurm's device cgroup
//! withholds; `/proc/driver/nvidia/gpus` would list those too. Without `nvidia-smi`, the device files
//! `/dev/nvidiaN` are counted. `CUDA_VISIBLE_DEVICES` is applied as CUDA does: the list ends at the first
//! entry that is not valid. Makes no decisions.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

/// An `nvidia-smi` that does not answer within this time counts as absent.
const NVIDIA_SMI_TIMEOUT: Duration = Duration::from_secs(20);

/// Returns the number of GPUs that a trainer started from here sees.
pub async fn visible() -> usize {
    let driver = ["/proc/driver/nvidia", "/dev/nvidiactl", "/dev/dxg"];
    if !driver.iter().any(|path| Path::new(path).exists()) {
        return 0;
    }
    let installed = match nvidia_smi(&["-L"]).await {
        Some(list) => uuids(&list),
        None => vec![String::new(); device_files(Path::new("/dev"))],
    };
    restrict(&installed, std::env::var("CUDA_VISIBLE_DEVICES").ok().as_deref())
}

/// Runs `nvidia-smi` and returns its standard output; `None` if it is absent, fails or times out.
pub async fn nvidia_smi(args: &[&str]) -> Option<String> {
    let mut command = Command::new("nvidia-smi");
    command.args(args).stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(NVIDIA_SMI_TIMEOUT, command.output()).await.ok()?.ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Returns the UUIDs of the GPUs in the output of `nvidia-smi -L`. Lines look like
/// `GPU 0: NVIDIA A100 (UUID: GPU-1b2c...)`; those of MIG instances are indented, and left out.
fn uuids(list: &str) -> Vec<String> {
    let uuid = |line: &str| {
        line.split_once("UUID: ")
            .map_or_else(String::new, |(_, rest)| rest.trim_end_matches([')', ' ']).to_owned())
    };
    list.lines().filter(|line| line.starts_with("GPU ")).map(uuid).collect()
}

fn device_files(dev: &Path) -> usize {
    let is_gpu = |name: &str| {
        name.strip_prefix("nvidia")
            .is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit()))
    };
    fs::read_dir(dev).map_or(0, |entries| {
        entries.flatten().filter(|entry| entry.file_name().to_str().is_some_and(is_gpu)).count()
    })
}

fn restrict(installed: &[String], visible_devices: Option<&str>) -> usize {
    let Some(list) = visible_devices else { return installed.len() };
    let valid = |entry: &str| match entry.parse::<usize>() {
        Ok(index) => index < installed.len(),
        Err(_) if entry.starts_with("MIG-") => true,
        Err(_) => {
            entry.starts_with("GPU-")
                && installed.iter().any(|uuid| uuid.is_empty() || uuid.starts_with(entry))
        }
    };
    list.split(',').map(str::trim).take_while(|entry| valid(entry)).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-aaaa-1)\n  \
                        MIG 1g.10gb Device 0: (UUID: MIG-cccc)\n\
                        GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-bbbb-2)\n";

    #[test]
    fn gpus_are_counted_and_mig_instances_are_not() {
        assert_eq!(uuids(LIST), ["GPU-aaaa-1", "GPU-bbbb-2"]);
        assert_eq!(uuids("No devices were found\n").len(), 0);
    }

    #[test]
    fn the_list_of_visible_devices_ends_at_the_first_that_is_not_valid() {
        let installed = uuids(LIST);
        let count = |list| restrict(&installed, list);
        assert_eq!(count(None), 2);
        assert_eq!(count(Some("")), 0);
        assert_eq!(count(Some("-1")), 0);
        assert_eq!(count(Some("1")), 1);
        assert_eq!(count(Some("0, 1")), 2);
        assert_eq!(count(Some("0,7,1")), 1);
        assert_eq!(count(Some("GPU-bbbb")), 1);
        assert_eq!(count(Some("GPU-dddd")), 0);
        assert_eq!(count(Some("MIG-cccc")), 1);
    }

    #[test]
    fn device_files_of_gpus_are_told_from_others() {
        let dev = tempfile::tempdir().unwrap();
        for name in ["nvidia0", "nvidia12", "nvidiactl", "nvidia-uvm", "null"] {
            fs::write(dev.path().join(name), "").unwrap();
        }
        assert_eq!(device_files(dev.path()), 2);
    }
}
