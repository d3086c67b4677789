//! One run of Lockstep's launcher.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use job::config::Model;
use job::network::Network;
use serde_json::Value;

use crate::Args;

/// Number of steps at the start and at the end whose mean losses are compared.
const COMPARED: usize = 5;

/// The launcher, and the arguments that are the same in all runs.
pub struct Launcher {
    program: PathBuf,
    arguments: Vec<String>,
    data: Option<PathBuf>,
}

/// The results of a run.
pub struct Measured {
    /// Number of parameters of the network.
    pub parameters: usize,
    /// Mean loss over the first steps.
    pub first_loss: f64,
    /// Mean loss over the last steps.
    pub last_loss: f64,
    /// Images per second over all ranks.
    pub images_per_s: f64,
    /// Peak memory of rank 0 in bytes.
    pub peak_memory_bytes: u64,
}

impl Measured {
    /// Returns whether the loss falls, that is, whether the network learns.
    pub fn falls(&self) -> bool {
        self.last_loss < self.first_loss
    }
}

impl Launcher {
    /// Takes the launcher in the folder of this program.
    pub fn new(args: &Args) -> anyhow::Result<Self> {
        let program = std::env::current_exe()?.with_file_name("launcher");
        if !program.is_file() {
            bail!(
                "{} is not built: run `cargo build --release -p launcher -p trainer`",
                program.display()
            );
        }
        let mut arguments = match args.gpus {
            Some(gpus) => vec!["--gpus".to_owned(), gpus.to_string()],
            None => vec!["--cpu".to_owned(), args.cpu.to_string()],
        };
        arguments.extend(["--quiet", "--resume", "never"].map(str::to_owned));
        let mut sets = vec![
            format!("train.max_steps={}", args.steps),
            format!("train.batch_size_per_rank={}", args.batch_per_rank),
            "metrics.log_every=1".to_owned(),
            "data.test_images=100".to_owned(),
        ];
        sets.extend(args.data.is_none().then(|| "data.dataset=synthetic".to_owned()));
        for set in sets.iter().chain(&args.set) {
            arguments.extend(["--set".to_owned(), set.clone()]);
        }
        Ok(Self { program, arguments, data: args.data.clone() })
    }

    /// Trains `model` in a folder that is removed afterwards.
    pub fn train(&self, model: &Model) -> anyhow::Result<Measured> {
        let folder = tempfile::tempdir()?;
        let config = folder.path().join("network.yaml");
        fs::write(
            &config,
            format!("model: {{name: {}, stem: {}}}\n", model.name, model.stem.as_str()),
        )?;
        let run_dir = folder.path().join("run");
        let mut command = Command::new(&self.program);
        command.arg(&config).arg("--run-dir").arg(&run_dir).args(&self.arguments);
        if let Some(data) = &self.data {
            command.env("CIFAR10_DIR", data);
        }
        let output = command.stdin(Stdio::null()).output()?;
        if !output.status.success() {
            bail!("{}: {}: {}", model.name, output.status, String::from_utf8_lossy(&output.stderr));
        }
        let parameters = Network::new(model, [3, 32, 32], 10).parameter_count();
        read(&run_dir.join("metrics.jsonl"), parameters)
    }
}

fn read(metrics: &Path, parameters: usize) -> anyhow::Result<Measured> {
    let text = fs::read_to_string(metrics).with_context(|| metrics.display().to_string())?;
    let records: Vec<Value> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let of_kind = |kind: &'static str| records.iter().filter(move |record| record["kind"] == kind);
    let losses: Vec<f64> = of_kind("step").filter_map(|record| record["loss"].as_f64()).collect();
    let summary = of_kind("summary").next().context("the run has no summary")?;
    let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
    if losses.len() < 2 * COMPARED {
        bail!(
            "the run has {} steps with a loss; at least {} are needed",
            losses.len(),
            2 * COMPARED
        );
    }
    Ok(Measured {
        parameters,
        first_loss: mean(&losses[..COMPARED]),
        last_loss: mean(&losses[losses.len() - COMPARED..]),
        images_per_s: summary["images_per_s"]
            .as_f64()
            .context("the summary has no images_per_s")?,
        peak_memory_bytes: summary["peak_memory_bytes"]
            .as_u64()
            .context("the summary has no peak_memory_bytes")?,
    })
}
