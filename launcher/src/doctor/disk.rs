//! Checks that the disk has room for what a run writes, and that it writes fast enough.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use job::config::Config;
use rustix::fs::statvfs;

use super::finding::Finding;
use crate::data::Outlook;
use crate::plan::Plan;

const MIB: u64 = 1 << 20;

/// Size of the first write of the speed measurement. Each later write is as long as all before it together.
const FIRST_PROBE_BYTES: usize = 4 << 20;

/// Total size at which the speed measurement ends.
const MAX_PROBE_BYTES: usize = 64 << 20;

/// Time after which the speed measurement starts no further write: the disk is slow, and its speed known well
/// enough.
const MAX_PROBE_TIME: Duration = Duration::from_secs(2);

/// Estimated time of writing a checkpoint beyond which the doctor warns: training is held up noticeably.
const SLOW_CHECKPOINT: Duration = Duration::from_secs(10);

/// Disk space for logs, records and curves.
const RECORDS_BYTES: u64 = 16 << 20;

/// Checks free space and speed of the disk that holds `run_dir`, and free space where images are to be
/// downloaded. Nodes other than node 0 write only logs.
pub fn examine(plan: &Plan, config: &Config, run_dir: &Path) -> Vec<Finding> {
    let place = existing(run_dir);
    let copies_averaged = u64::from(config.train.ema_decay.is_some());
    let parameters = plan.memory.parameter_bytes as u64;
    let checkpoint = parameters * (1 + copies_averaged) + plan.memory.optimizer_bytes as u64;
    let mut findings = if plan.layout.node_rank > 0 {
        vec![free_space(&place, "logs take", RECORDS_BYTES)]
    } else {
        // The checkpoints that are kept, the best one, and the one that is being written.
        let needed = checkpoint * (config.checkpoint.keep as u64 + 2) + RECORDS_BYTES;
        vec![
            free_space(&place, "checkpoints and records take", needed),
            fsync_speed(&place, checkpoint),
        ]
    };
    if let Outlook::Download { root, .. } = Outlook::new(&config.data) {
        // The archive and its unpacked content.
        let needed = 2 * plan.memory.image_bytes as u64;
        findings.push(free_space(&existing(&root), "images to be downloaded take", needed));
    }
    findings
}

fn free_space(place: &Path, what: &str, needed: u64) -> Finding {
    let subject = "disk space";
    match statvfs(place) {
        Ok(stat) => {
            let free = stat.f_bavail * stat.f_frsize;
            let seen = format!(
                "{} MiB free in {}, {what} {} MiB",
                free / MIB,
                place.display(),
                needed / MIB
            );
            if free < needed {
                let remedy = "free some space, choose another --run-dir or data.root, or lower \
                              checkpoint.keep";
                Finding::broken(subject, seen, remedy)
            } else {
                Finding::fine(subject, seen)
            }
        }
        Err(error) => Finding::broken(
            subject,
            format!("{}: {error}", place.display()),
            "choose another --run-dir",
        ),
    }
}

fn fsync_speed(place: &Path, checkpoint: u64) -> Finding {
    let subject = "disk speed";
    match bytes_per_second(place) {
        Ok(per_second) => {
            let save = Duration::from_secs_f64(checkpoint as f64 / per_second);
            let seen = format!(
                "{:.0} MB/s with fsync: a checkpoint takes about {:.1} s",
                per_second / 1e6,
                save.as_secs_f64()
            );
            if save > SLOW_CHECKPOINT {
                let remedy =
                    "choose a --run-dir on a faster disk, or raise checkpoint.every_epochs";
                Finding::warning(subject, seen, remedy)
            } else {
                Finding::fine(subject, seen)
            }
        }
        Err(error) => {
            let seen = format!("cannot write in {}: {error}", place.display());
            Finding::broken(subject, seen, "choose another --run-dir, or fix its permissions")
        }
    }
}

/// Measures the speed of writes that are each followed by an fsync.
fn bytes_per_second(place: &Path) -> std::io::Result<f64> {
    let folder = tempfile::Builder::new().prefix(".lockstep-doctor-").tempdir_in(place)?;
    let mut file = File::create(folder.path().join("probe"))?;
    let (mut written, mut next) = (0, FIRST_PROBE_BYTES);
    let started = Instant::now();
    while written < MAX_PROBE_BYTES && started.elapsed() < MAX_PROBE_TIME {
        file.write_all(&vec![0x5a; next])?;
        file.sync_all()?;
        written += next;
        next = written;
    }
    Ok(written as f64 / started.elapsed().as_secs_f64())
}

/// Returns `path`, or its nearest ancestor that is an existing folder.
fn existing(path: &Path) -> PathBuf {
    let found = path.ancestors().find(|folder| folder.is_dir()).unwrap_or(Path::new("."));
    if found.as_os_str().is_empty() { PathBuf::from(".") } else { found.to_owned() }
}
