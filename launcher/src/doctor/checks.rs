//! What can be found out on one machine without a GPU.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use job::config::Config;
use job::dataset::{self, Outline};
use rustix::fs::statvfs;
use tokio::process::Command;

use super::Finding;
use super::all_reduce;
use crate::about::{self, About};
use crate::data as images;
use crate::mpi;
use crate::plan::{Device, Plan};

const MIB: u64 = 1 << 20;

/// What the speed of the disk is measured with.
const PROBE_BYTES: usize = 64 << 20;

/// A checkpoint that takes longer than this holds up training noticeably.
const SLOW_CHECKPOINT: Duration = Duration::from_secs(10);

/// Less shared memory makes NCCL fail between GPUs without a direct connection.
const SHM_BYTES: u64 = 1 << 30;

/// The trainer runs, and is of this version. What it says of itself is returned.
pub async fn trainer(trainer: &Path, with_gpus: bool) -> (Vec<Finding>, Option<About>) {
    let subject = "trainer";
    match about::ask(trainer, with_gpus).await {
        Err(error) => {
            let remedy = "`make setup` gets libtorch; then cargo build --release -p trainer";
            (vec![Finding::broken(subject, error, remedy)], None)
        }
        Ok(about) => {
            let own = env!("CARGO_PKG_VERSION");
            let finding = if about.version == own {
                Finding::fine(subject, format!("{} of version {own}", trainer.display()))
            } else {
                let seen = format!("version {}, the launcher {own}", about.version);
                Finding::broken(subject, seen, "build both from the same source")
            };
            (vec![finding], Some(about))
        }
    }
}

/// Each rank has a core.
pub fn cores(plan: &Plan) -> Vec<Finding> {
    let subject = "cores";
    match plan.warnings.iter().find(|warning| warning.contains("cores")) {
        Some(warning) => vec![Finding::warning(subject, warning, "fewer ranks, or more cores")],
        None => {
            let seen =
                format!("{} threads for each of {} ranks", plan.threads_per_rank, plan.ranks.len());
            vec![Finding::fine(subject, seen)]
        }
    }
}

/// What the ranks need is there, and so is shared memory.
pub fn memory(plan: &Plan) -> Vec<Finding> {
    let mut findings = Vec::new();
    let needed = (plan.memory.total_bytes() * plan.ranks.len()) as u64;
    let available = available_memory();
    if plan.device == Device::Cpu {
        let seen =
            format!("{} MiB available, the ranks need about {}", available / MIB, needed / MIB);
        findings.push(if available < needed {
            let remedy = "fewer ranks, or a smaller train.batch_size_per_rank";
            Finding::broken("memory", seen, remedy)
        } else {
            Finding::fine("memory", seen)
        });
    }
    // Ranks over `shm` share a memory file that lies elsewhere.
    if plan.backend != "shm" {
        findings.push(match statvfs("/dev/shm") {
            Ok(stat) => {
                let bytes = stat.f_bavail * stat.f_frsize;
                let seen = format!("{} MiB free in /dev/shm", bytes / MIB);
                if bytes < SHM_BYTES {
                    let remedy = "in a container: docker run --shm-size=8g, or --ipc=host";
                    Finding::warning("shared memory", seen, remedy)
                } else {
                    Finding::fine("shared memory", seen)
                }
            }
            Err(error) => {
                let seen = format!("no /dev/shm: {error}");
                Finding::broken("shared memory", seen, "mount a tmpfs there")
            }
        });
    }
    findings
}

/// Bytes that processes can still have, the limit of a control group included.
fn available_memory() -> u64 {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = kib.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    let machine = kib.map_or(u64::MAX, |kib| kib * 1024);
    let number = |path: &str| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let group = number("/sys/fs/cgroup/memory.max")
        .map(|max| max.saturating_sub(number("/sys/fs/cgroup/memory.current").unwrap_or(0)));
    machine.min(group.unwrap_or(u64::MAX))
}

/// How fast ranks of this machine average gradients.
pub fn all_reduce(plan: &Plan) -> Vec<Finding> {
    let subject = "all-reduce";
    let ranks = plan.ranks.len();
    if plan.device != Device::Cpu || ranks < 2 {
        return Vec::new();
    }
    let bytes = plan.memory.gradient_bytes;
    vec![match all_reduce::over_shared_memory(ranks, bytes) {
        Ok(took) => {
            let seen = format!(
                "{} MiB of gradients over {ranks} ranks of this machine in {:.1} ms, {:.1} GB/s",
                bytes as u64 / MIB,
                took.as_secs_f64() * 1e3,
                bytes as f64 / took.as_secs_f64() / 1e9
            );
            Finding::fine(subject, seen)
        }
        Err(error) => Finding::broken(subject, error, "see the message"),
    }]
}

/// There is room for what the run writes, and it is written fast enough.
pub fn disk(plan: &Plan, config: &Config, run_dir: &Path) -> Vec<Finding> {
    let place = existing(run_dir);
    // Weights and the optimizer's state.
    let checkpoint = (plan.memory.parameter_bytes + plan.memory.optimizer_bytes) as u64;
    // Those that are kept, the best one, and the one that is being written.
    let needed = checkpoint * (config.checkpoint.keep as u64 + 2);
    vec![free_space(&place, needed), fsync_speed(&place, checkpoint)]
}

fn free_space(place: &Path, needed: u64) -> Finding {
    let subject = "disk space";
    match statvfs(place) {
        Ok(stat) => {
            let free = stat.f_bavail * stat.f_frsize;
            let seen = format!(
                "{} MiB free in {}, checkpoints take {}",
                free / MIB,
                place.display(),
                needed / MIB
            );
            if free < needed {
                let remedy = "another --run-dir, or fewer checkpoints: checkpoint.keep";
                Finding::broken(subject, seen, remedy)
            } else {
                Finding::fine(subject, seen)
            }
        }
        Err(error) => {
            Finding::broken(subject, format!("{}: {error}", place.display()), "another --run-dir")
        }
    }
}

fn fsync_speed(place: &Path, checkpoint: u64) -> Finding {
    let subject = "disk speed";
    match time_of_fsync(place) {
        Ok(took) => {
            let per_second = PROBE_BYTES as f64 / took.as_secs_f64();
            let save = Duration::from_secs_f64(checkpoint as f64 / per_second);
            let seen = format!(
                "{:.0} MB/s with fsync: a checkpoint takes about {:.1} s",
                per_second / 1e6,
                save.as_secs_f64()
            );
            if save > SLOW_CHECKPOINT {
                let remedy = "a --run-dir on a faster disk, or checkpoint.every_epochs";
                Finding::warning(subject, seen, remedy)
            } else {
                Finding::fine(subject, seen)
            }
        }
        Err(error) => {
            let seen = format!("cannot write in {}: {error}", place.display());
            Finding::broken(subject, seen, "another --run-dir, or its permissions")
        }
    }
}

fn time_of_fsync(place: &Path) -> std::io::Result<Duration> {
    let folder = tempfile::Builder::new().prefix(".lockstep-doctor-").tempdir_in(place)?;
    let block = vec![0x5a; 1 << 20];
    let mut file = File::create(folder.path().join("probe"))?;
    let started = Instant::now();
    for _ in 0..PROBE_BYTES / block.len() {
        file.write_all(&block)?;
    }
    file.sync_all()?;
    Ok(started.elapsed())
}

/// The nearest folder above `path` that is there.
fn existing(path: &Path) -> PathBuf {
    let found = path.ancestors().find(|folder| folder.is_dir()).unwrap_or(Path::new("."));
    if found.as_os_str().is_empty() { PathBuf::from(".") } else { found.to_owned() }
}

/// The images are there, or can be had, and what is known of them.
pub fn data(config: &Config) -> (Vec<Finding>, Option<Outline>) {
    let broken = |seen| vec![Finding::broken("data", seen, "docs/data.md says how to get images")];
    let outline = match dataset::outline(&config.data) {
        Ok(outline) => outline,
        Err(error) => return (broken(error.to_string()), None),
    };
    let seen = images::describe(&config.data);
    let findings = if seen.starts_with("missing or bad") {
        broken(seen)
    } else {
        vec![Finding::fine("data", seen)]
    };
    (findings, Some(outline))
}

/// Open MPI's `mpirun` is there, for ranks on CPUs of several nodes.
pub async fn mpirun(about: Option<&About>) -> Vec<Finding> {
    let subject = "mpirun";
    let Some(about) = about else { return Vec::new() };
    let Some(built_with) = &about.mpirun else {
        let remedy = "cargo build --release -p trainer --features mpi";
        return vec![Finding::broken(subject, "the trainer was built without MPI", remedy)];
    };
    let program = mpi::find_mpirun(built_with);
    let mut command = Command::new(&program);
    let output = command.arg("--version").stdin(Stdio::null()).output().await;
    let said = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let remedy = "`make setup` installs Open MPI 5; LOCKSTEP_MPIRUN names another one";
    vec![match said {
        Ok(said) if said.contains("Open MPI") => {
            let version = said.lines().next().unwrap_or_default();
            Finding::fine(subject, format!("{}: {version}", program.display()))
        }
        Ok(said) => {
            let first = said.lines().next().unwrap_or("it said nothing");
            Finding::broken(
                subject,
                format!("{} is not Open MPI's: {first}", program.display()),
                remedy,
            )
        }
        Err(error) => Finding::broken(subject, format!("{}: {error}", program.display()), remedy),
    }]
}
