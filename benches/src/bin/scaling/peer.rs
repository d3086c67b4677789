//! Running PyTorch DDP, and reading what it writes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;
use serde_json::Value;
use time::OffsetDateTime;

use crate::cli::{Args, Mode};
use crate::error::{BenchError, Result};
use crate::ours::WARMUP_STEPS;
use crate::plan::{Case, Cell, Device};
use crate::process;
use crate::record::Measured;

/// PyTorch and what is the same in all runs.
pub struct Peer {
    /// `None` where PyTorch cannot run.
    versions: Option<Value>,
    python: PathBuf,
    script: PathBuf,
    device: Device,
    steps: u64,
    data: Option<PathBuf>,
    timeout_seconds: u64,
}

impl Peer {
    /// Asks whether PyTorch can run, if it is `wanted`; says why, where it cannot.
    pub fn find(args: &Args, wanted: bool) -> Self {
        let mut peer = Self {
            versions: None,
            python: args.python.clone(),
            script: args.peer_script.clone(),
            device: args.device(),
            steps: args.steps,
            data: args.data.clone(),
            timeout_seconds: args.timeout_seconds,
        };
        if wanted {
            match peer.check() {
                Ok(versions) => peer.versions = Some(versions),
                Err(error) => eprintln!("scaling: PyTorch is left out: {error}"),
            }
        }
        peer
    }

    /// What it says of its versions; `None` where it cannot run.
    pub const fn versions(&self) -> Option<&Value> {
        self.versions.as_ref()
    }

    fn check(&self) -> Result<Value> {
        let program = self.python.display().to_string();
        let output = Command::new(&self.python)
            .arg(&self.script)
            .arg("--check")
            .output()
            .map_err(|source| BenchError::Start { program: program.clone(), source })?;
        if !output.status.success() {
            let output_text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(BenchError::Ended { program, status: output.status, output: output_text });
        }
        serde_json::from_slice(&output.stdout).map_err(|error| unexpected(&error))
    }

    /// Trains once, with everything in `folder`.
    ///
    /// # Errors
    /// When the run fails, or does not say what was expected.
    pub fn measure(&self, case: &Case, cell: Cell, mode: Mode, folder: &Path) -> Result<Measured> {
        let json = folder.join("peer.json");
        let mut command = Command::new(&self.python);
        command
            .args(["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"])
            .arg(cell.ranks.to_string())
            .arg(&self.script)
            .args(["--mode", mode.name()])
            .args(["--model", case.network.model, "--stem", case.network.stem])
            .args(["--device", if self.device == Device::Gpu { "cuda" } else { "cpu" }])
            .args(["--batch-per-rank", &cell.batch_per_rank.to_string()])
            .args(["--steps", &self.steps.to_string()])
            .args(["--warmup-steps", &WARMUP_STEPS.to_string()])
            .arg("--json")
            .arg(&json);
        if let Some(data) = &self.data {
            command.arg("--data").arg(data);
        }
        let started = process::run(&mut command, folder, self.timeout_seconds)?;
        let text = fs::read(&json).map_err(|source| BenchError::File { path: json, source })?;
        from_json(&text, started)
    }
}

fn unexpected(error: &serde_json::Error) -> BenchError {
    BenchError::Unexpected { what: "what PyTorch wrote", problem: error.to_string() }
}

/// The peer's file, as far as it matters here.
#[derive(Deserialize)]
struct Report {
    images_per_s: f64,
    step_ms_p50: f64,
    step_ms_p95: f64,
    peak_memory_bytes: u64,
    /// In seconds since 1970.
    first_step_at: f64,
}

fn from_json(text: &[u8], command_at: OffsetDateTime) -> Result<Measured> {
    let raw: Value = serde_json::from_slice(text).map_err(|error| unexpected(&error))?;
    let report = Report::deserialize(&raw).map_err(|error| unexpected(&error))?;
    let command_at = command_at.unix_timestamp_nanos() as f64 / 1e9;
    Ok(Measured {
        images_per_s: report.images_per_s,
        step_ms_p50: report.step_ms_p50,
        step_ms_p95: report.step_ms_p95,
        seconds_to_training: report.first_step_at - command_at,
        peak_memory_bytes: report.peak_memory_bytes,
        raw,
    })
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn a_peers_file_is_read() {
        let text =
            br#"{"mode":"tuned","images_per_s":700.5,"step_ms_p50":180.0,"step_ms_p95":190.0,
            "peak_memory_bytes":1000,"first_step_at":6.5}"#;
        let measured = from_json(text, datetime!(1970-01-01 00:00:02 UTC)).unwrap();
        assert_eq!((measured.images_per_s, measured.seconds_to_training), (700.5, 4.5));
        assert_eq!(measured.raw["mode"], "tuned");
        assert!(from_json(b"{}", OffsetDateTime::UNIX_EPOCH).is_err());
    }
}
