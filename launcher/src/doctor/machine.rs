//! Checks what a run needs of this machine besides disks and GPUs.

use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use job::counted;
use rustix::fs::statvfs;
use tokio::process::Command;
use tokio::time::timeout;

use super::finding::Finding;
use crate::about::{self, About};
use crate::memory;
use crate::mpi;
use crate::plan::{Device, Plan, Warning};

const MIB: u64 = 1 << 20;

/// How long `mpirun` may take to print its version.
const MPIRUN_TIMEOUT: Duration = Duration::from_secs(10);

/// Free space in `/dev/shm` below which the doctor warns: NCCL fails between GPUs without a direct
/// connection.
const SHM_BYTES: u64 = 1 << 30;

/// Checks that the trainer runs and has the launcher's version. Also returns what it reports about itself.
pub async fn trainer(trainer: &Path, with_gpus: bool) -> (Vec<Finding>, Option<About>) {
    let subject = "trainer";
    match about::ask(trainer, with_gpus).await {
        Err(error) => {
            let remedy = "`make setup` installs libtorch; then cargo build --release -p trainer";
            (vec![Finding::broken(subject, error, remedy)], None)
        }
        Ok(about) => {
            let own = env!("CARGO_PKG_VERSION");
            let finding = if about.version == own {
                Finding::fine(subject, format!("{} of version {own}", trainer.display()))
            } else {
                let seen = format!("version {}, but the launcher has version {own}", about.version);
                Finding::broken(subject, seen, "build both from the same source")
            };
            (vec![finding], Some(about))
        }
    }
}

/// Checks that each rank has a core.
pub fn cores(plan: &Plan) -> Vec<Finding> {
    let subject = "cores";
    let remedy = "use fewer ranks or more cores; under Slurm, give sbatch and srun --cpus-per-task";
    let is_of_cores = |warning: &&Warning| matches!(warning, Warning::SharedCores { .. });
    match plan.warnings.iter().find(is_of_cores) {
        Some(warning) => vec![Finding::warning(subject, warning.to_string(), remedy)],
        None => {
            let threads = counted(plan.threads_per_rank, "thread");
            let seen = format!("{threads} for each of {}", counted(plan.ranks.len(), "rank"));
            vec![Finding::fine(subject, seen)]
        }
    }
}

/// Checks that there is enough memory for the ranks, and enough shared memory.
pub fn memory(plan: &Plan) -> Vec<Finding> {
    let mut findings = Vec::new();
    if plan.device == Device::Cpu {
        let needed = (plan.memory.total_bytes() * plan.ranks.len()) as u64;
        let available = memory::available();
        let seen =
            format!("{} MiB available, the ranks need about {} MiB", available / MIB, needed / MIB);
        findings.push(if available < needed {
            let remedy = "use fewer ranks, or a smaller train.batch_size_per_rank";
            Finding::broken("memory", seen, remedy)
        } else {
            Finding::fine("memory", seen)
        });
    }
    // The memory file that ranks over `shm` share does not lie in `/dev/shm`.
    if plan.backend != "shm" && plan.ranks.len() > 1 {
        findings.push(shared_memory());
    }
    findings
}

fn shared_memory() -> Finding {
    let subject = "shared memory";
    match statvfs("/dev/shm") {
        Ok(stat) => {
            let bytes = stat.f_bavail * stat.f_frsize;
            let seen = format!("{} MiB free in /dev/shm", bytes / MIB);
            if bytes < SHM_BYTES {
                let remedy = "mount -o remount,size=8g /dev/shm; in a container docker run --shm-size=8g, \
                              or --ipc=host";
                Finding::warning(subject, seen, remedy)
            } else {
                Finding::fine(subject, seen)
            }
        }
        Err(error) => {
            Finding::broken(subject, format!("no /dev/shm: {error}"), "mount a tmpfs there")
        }
    }
}

/// Checks that there is Open MPI's `mpirun`, which ranks over MPI need.
pub async fn mpirun(about: Option<&About>) -> Vec<Finding> {
    let subject = "mpirun";
    let Some(about) = about else { return Vec::new() };
    let Some(built_with) = &about.mpirun else {
        let remedy = "cargo build --release -p trainer --features mpi";
        return vec![Finding::broken(subject, "the trainer was built without MPI", remedy)];
    };
    let program = mpi::find_mpirun(built_with);
    let mut command = Command::new(&program);
    let asked = command.arg("--version").stdin(Stdio::null()).kill_on_drop(true).output();
    let late = |_| Err(io::Error::new(io::ErrorKind::TimedOut, "it did not answer"));
    let output = timeout(MPIRUN_TIMEOUT, asked).await.unwrap_or_else(late);
    let said = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let remedy = "`make setup` installs Open MPI 5; LOCKSTEP_MPIRUN can name another one";
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
