//! Runs PyTorch DDP, and reads the file that it writes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use job::metrics::WARMUP_STEPS;
use serde::Deserialize;
use serde_json::Value;
use time::OffsetDateTime;

use crate::accuracy::EpochEnd;
use crate::cli::{Args, Mode};
use crate::energy::seconds;
use crate::error::{BenchError, Result};
use crate::plan::{Case, Device, Goal, JobSize};
use crate::process;
use crate::record::Measured;
use crate::srun;

/// PyTorch, and the options that are the same in all runs.
pub struct Peer {
    /// `None` where PyTorch cannot run.
    versions: Option<Value>,
    python: PathBuf,
    script: PathBuf,
    device: Device,
    steps: u64,
    data: Option<PathBuf>,
    train_images: Option<usize>,
    most_seconds: Option<f64>,
    timeout_seconds: u64,
}

impl Peer {
    /// Checks whether PyTorch can run, if it is `wanted`; prints why where it cannot.
    pub fn find(args: &Args, wanted: bool) -> Self {
        let mut peer = Self {
            versions: None,
            python: args.python.clone(),
            script: args.peer_script.clone(),
            device: args.device(),
            steps: args.steps,
            data: args.data.clone(),
            train_images: args.train_images,
            most_seconds: args.peer_seconds,
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

    /// Returns the versions that PyTorch reports, or `None` where it cannot run.
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
    /// When the run fails, or its file lacks something.
    pub fn measure(
        &self,
        case: &Case,
        size: JobSize,
        mode: Mode,
        folder: &Path,
    ) -> Result<Measured> {
        let json = folder.join("peer.json");
        let mut command = self.command(case, size, mode, &json)?;
        command.args(["--steps", &self.steps.to_string()]);
        // Several ranks would have to agree on when to stop, which takes time of its own.
        if let (Some(seconds), 1) = (self.most_seconds, size.ranks) {
            command.args(["--most-seconds", &seconds.to_string()]);
        }
        let started = process::run(&mut command, folder, self.timeout_seconds)?;
        from_json(&read(json)?, started)
    }

    /// Trains until an evaluation reaches `goal.target` or the case's epochs are over, with all files in
    /// `folder`. Returns the end of each epoch.
    ///
    /// # Errors
    /// As [`Self::measure`].
    pub fn train_to(
        &self,
        case: &Case,
        size: JobSize,
        mode: Mode,
        folder: &Path,
        goal: Goal,
    ) -> Result<Vec<EpochEnd>> {
        let json = folder.join("peer.json");
        let mut command = self.command(case, size, mode, &json)?;
        command.args(["--to-accuracy", &goal.target.to_string()]).args([
            "--epochs",
            &case.epochs.to_string(),
            "--seed",
            &goal.seed.to_string(),
        ]);
        process::run(&mut command, folder, goal.timeout_seconds)?;
        read_epochs(json)
    }

    fn command(&self, case: &Case, size: JobSize, mode: Mode, json: &Path) -> Result<Command> {
        let mut command = srun::command(size.nodes, &self.python);
        command.args(["-m", "torch.distributed.run"]);
        if size.nodes == 1 {
            command.arg("--standalone");
        } else {
            command.args(["--nnodes", &size.nodes.to_string(), "--rdzv-backend", "c10d"]).args([
                "--rdzv-id",
                "scaling",
                "--rdzv-endpoint",
                &srun::meeting_point()?,
            ]);
        }
        command
            .args(["--nproc-per-node", &(size.ranks / size.nodes).to_string()])
            .arg(&self.script)
            .args(["--mode", mode.name()])
            .args(["--model", case.network.model, "--stem", case.network.stem])
            .args(["--device", if self.device == Device::Gpu { "cuda" } else { "cpu" }])
            .args(["--batch-per-rank", &size.batch_per_rank.to_string()])
            .args(["--warmup-steps", &WARMUP_STEPS.to_string()])
            .arg("--json")
            .arg(json);
        if let Some(data) = &self.data {
            command.arg("--data").arg(data);
        }
        if let Some(images) = self.train_images {
            command.args(["--train-images", &images.to_string()]);
        }
        Ok(command)
    }
}

fn read(path: PathBuf) -> Result<Vec<u8>> {
    fs::read(&path).map_err(|source| BenchError::File { path, source })
}

/// Reads the peer's file after training to an accuracy.
///
/// # Errors
/// When the file cannot be read or has another format.
pub fn read_epochs(path: PathBuf) -> Result<Vec<EpochEnd>> {
    let report: Epochs = serde_json::from_slice(&read(path)?).map_err(|e| unexpected(&e))?;
    Ok(report.epochs)
}

/// The fields that are used here of the peer's file after training to an accuracy.
#[derive(Deserialize)]
struct Epochs {
    epochs: Vec<EpochEnd>,
}

fn unexpected(error: &serde_json::Error) -> BenchError {
    BenchError::Unexpected { what: "the report of the PyTorch script", problem: error.to_string() }
}

/// The fields that are used here of the peer's file after a measurement.
#[derive(Deserialize)]
struct Report {
    images_per_s: f64,
    step_ms_p50: f64,
    step_ms_p95: f64,
    peak_memory_bytes: u64,
    /// Seconds since 1970, as are `timed_from` and `timed_to`.
    first_step_at: f64,
    timed_from: f64,
    timed_to: f64,
    ranks: Vec<RankReport>,
}

#[derive(Deserialize)]
struct RankReport {
    step_ms: Vec<f64>,
}

fn from_json(text: &[u8], command_at: OffsetDateTime) -> Result<Measured> {
    let raw: Value = serde_json::from_slice(text).map_err(|error| unexpected(&error))?;
    let report = Report::deserialize(&raw).map_err(|error| unexpected(&error))?;
    let step_ms = report.ranks.first().map(|rank| rank.step_ms.clone());
    Ok(Measured {
        images_per_s: report.images_per_s,
        step_ms_p50: report.step_ms_p50,
        step_ms_p95: report.step_ms_p95,
        seconds_to_training: report.first_step_at - seconds(command_at),
        peak_memory_bytes: report.peak_memory_bytes,
        step_ms: step_ms.unwrap_or_default(),
        split: None,
        timed: (report.timed_from, report.timed_to),
        images: None,
        energy: None,
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
            "peak_memory_bytes":1000,"first_step_at":6.5,"timed_from":7.0,"timed_to":9.0,
            "ranks":[{"step_ms":[179.0,181.0]}]}"#;
        let measured = from_json(text, datetime!(1970-01-01 00:00:02 UTC)).unwrap();
        assert_eq!((measured.images_per_s, measured.seconds_to_training), (700.5, 4.5));
        assert_eq!((measured.timed, &measured.step_ms[..]), ((7.0, 9.0), &[179.0, 181.0][..]));
        assert_eq!(measured.raw["mode"], "tuned");
        assert!(from_json(b"{}", OffsetDateTime::UNIX_EPOCH).is_err());
    }
}
