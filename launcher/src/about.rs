//! What the trainer says of itself: the launcher does not link what it is built on.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tokio::process::Command;

/// Loading libtorch and asking the GPUs takes seconds at most.
const TIMEOUT: Duration = Duration::from_secs(60);

/// `trainer --describe [gpus]`.
#[derive(Debug, Clone, Deserialize)]
pub struct About {
    /// The trainer's.
    pub version: String,
    /// The `mpirun` of the MPI library that it was built with, if it was built with one.
    pub mpirun: Option<PathBuf>,
    /// The GPUs that libtorch sees, where that was asked.
    pub gpus: Option<Gpus>,
    /// The NCCL library that is found, where that was asked.
    pub nccl: Option<Nccl>,
}

/// What libtorch says of GPUs.
#[derive(Debug, Clone, Deserialize)]
pub struct Gpus {
    /// How many.
    pub count: usize,
    /// Why there are none.
    pub problem: Option<String>,
}

/// What there is of NCCL.
#[derive(Debug, Clone, Deserialize)]
pub struct Nccl {
    /// Its version.
    pub version: Option<String>,
    /// Why there is none.
    pub problem: Option<String>,
}

/// Asks `trainer`; `with_gpus`, also what it finds of them, which takes a while.
///
/// # Errors
/// A sentence: why there is no answer.
pub async fn ask(trainer: &Path, with_gpus: bool) -> Result<About, String> {
    let mut command = Command::new(trainer);
    command
        .arg("--describe")
        .args(with_gpus.then_some("gpus"))
        .stdin(Stdio::null())
        // Ctrl-C is the launcher's.
        .process_group(0)
        .kill_on_drop(true);
    let output = match tokio::time::timeout(TIMEOUT, command.output()).await {
        Ok(output) => {
            output.map_err(|error| format!("{} cannot be run: {error}", trainer.display()))?
        }
        Err(_) => return Err(format!("{} said nothing for {TIMEOUT:?}", trainer.display())),
    };
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let last = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
        return Err(format!("{} ended with {}: {last}", trainer.display(), output.status));
    }
    serde_json::from_slice(&output.stdout)
        .map_err(|error| format!("{} does not describe itself: {error}", trainer.display()))
}
