//! Asks the trainer about its build and devices with `trainer --describe`: the launcher is not linked with
//! the libraries that the trainer is built on.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tokio::process::Command;

/// Timeout of `trainer --describe`. Loading libtorch and querying the GPUs takes seconds at most.
const TIMEOUT: Duration = Duration::from_secs(60);

/// The output of `trainer --describe [gpus]`.
#[derive(Debug, Clone, Deserialize)]
pub struct About {
    /// Version of the trainer.
    pub version: String,
    /// The `mpirun` of the MPI library that the trainer was built with; `None` if it was built without MPI.
    pub mpirun: Option<PathBuf>,
    /// The GPUs that libtorch sees; `None` unless they were asked for.
    pub gpus: Option<Gpus>,
    /// The NCCL library that the trainer finds; `None` unless GPUs were asked for.
    pub nccl: Option<Nccl>,
}

/// The GPUs as libtorch sees them.
#[derive(Debug, Clone, Deserialize)]
pub struct Gpus {
    /// Number of GPUs; 0 if they cannot be used.
    pub count: usize,
    /// Why the GPUs cannot be used, if so.
    pub problem: Option<String>,
}

/// The NCCL library as the trainer finds it.
#[derive(Debug, Clone, Deserialize)]
pub struct Nccl {
    /// Version of the library, if it can be used.
    pub version: Option<String>,
    /// Why the library cannot be used, if so.
    pub problem: Option<String>,
}

/// Runs `trainer --describe` and returns its output. With `with_gpus`, it also describes GPUs and NCCL, which
/// takes a while.
///
/// # Errors
/// A sentence that says why there is no answer.
pub async fn ask(trainer: &Path, with_gpus: bool) -> Result<About, String> {
    let mut command = Command::new(trainer);
    command
        .arg("--describe")
        .args(with_gpus.then_some("gpus"))
        .stdin(Stdio::null())
        // Keeps Ctrl-C on the terminal from reaching this process: the launcher handles it.
        .process_group(0)
        .kill_on_drop(true);
    let output = match tokio::time::timeout(TIMEOUT, command.output()).await {
        Ok(output) => {
            output.map_err(|error| format!("{} cannot be run: {error}", trainer.display()))?
        }
        Err(_) => return Err(format!("{} gave no answer within {TIMEOUT:?}", trainer.display())),
    };
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let last = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
        return Err(format!("{} ended with {}: {last}", trainer.display(), output.status));
    }
    serde_json::from_slice(&output.stdout)
        .map_err(|error| format!("invalid output of {} --describe: {error}", trainer.display()))
}
