//! Runs Lockstep's launcher, and reads the metrics that a run leaves.

mod metrics;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use job::metrics::WARMUP_STEPS;
use job::run_dir::RunDir;

use self::metrics::{epochs_from_metrics, from_metrics, problem};
use crate::accuracy::{self, EpochEnd};
use crate::cli::Args;
use crate::error::{BenchError, Result};
use crate::plan::{Case, Device, Goal, JobSize};
use crate::process;
use crate::record::Measured;
use crate::srun;

/// Overrides for synthetic images, as many as CIFAR-10 has and as peers make.
const SYNTHETIC: [&str; 2] = ["data.dataset=synthetic", "data.train_images=50000"];

/// Lockstep's programs, and the options that are the same in all runs.
pub struct Ours {
    launcher: PathBuf,
    device: Device,
    steps: u64,
    data: Option<PathBuf>,
    train_images: Option<usize>,
    overrides: Vec<String>,
    timeout_seconds: u64,
}

impl Ours {
    /// Takes the launcher in the folder of this program.
    ///
    /// # Errors
    /// [`BenchError::NotBuilt`] where the launcher or the trainer is missing; [`BenchError::Nodes`].
    pub fn new(args: &Args) -> Result<Self> {
        let file = |source| BenchError::File { path: "/proc/self/exe".into(), source };
        let launcher = std::env::current_exe().map_err(file)?.with_file_name("launcher");
        for program in [launcher.clone(), launcher.with_file_name("trainer")] {
            if !program.is_file() {
                return Err(BenchError::NotBuilt(program));
            }
        }
        let most = args.nodes.iter().copied().max().unwrap_or(1);
        srun::check(most, |name| std::env::var(name).ok())?;
        Ok(Self {
            launcher,
            device: args.device(),
            steps: args.steps,
            data: args.data.clone(),
            train_images: args.train_images,
            overrides: args.overrides.clone(),
            timeout_seconds: args.timeout_seconds,
        })
    }

    /// Trains once, with everything in `folder`.
    ///
    /// # Errors
    /// When the run fails, or its metrics lack something.
    pub fn measure(
        &self,
        case: &Case,
        size: JobSize,
        overrides: &[String],
        folder: &Path,
    ) -> Result<Measured> {
        let steps = WARMUP_STEPS + self.steps;
        let own = [
            format!("train.max_steps={steps}"),
            // Peers only train. The final evaluation and checkpoint are waited for, but not timed.
            "eval.every_epochs=1000000".to_owned(),
            "checkpoint.every_epochs=1000000".to_owned(),
            "data.test_images=100".to_owned(),
        ];
        let run_dir = folder.join("run");
        let mut command = self.command(case, size, &run_dir, &[&own, overrides].concat());
        let started = process::run(&mut command, folder, self.timeout_seconds)?;
        let config = job::config::load(&RunDir::at(&run_dir).config_path(), &[])?;
        let outline =
            job::dataset::outline(&config.data).map_err(|error| problem(&error.to_string()))?;
        from_metrics(&read_metrics(&run_dir)?, started, steps, outline.images[0])
    }

    /// Trains until an evaluation reaches `goal.target` or the epochs are over, with everything in `folder`.
    ///
    /// # Errors
    /// As [`Self::measure`].
    pub fn train_to(
        &self,
        case: &Case,
        size: JobSize,
        overrides: &[String],
        folder: &Path,
        goal: Goal,
    ) -> Result<Vec<EpochEnd>> {
        let own = [format!("train.seed={}", goal.seed)];
        let run_dir = folder.join("run");
        let mut command = self.command(case, size, &run_dir, &[&own, overrides].concat());
        let is_enough = || accuracy::is_reached(&run_dir, goal.target);
        process::run_until(&mut command, folder, goal.timeout_seconds, is_enough)?;
        epochs_from_metrics(&read_metrics(&run_dir)?)
    }

    fn command(&self, case: &Case, size: JobSize, run_dir: &Path, overrides: &[String]) -> Command {
        let device = if self.device == Device::Gpu { "--gpus" } else { "--cpu" };
        let mut command = srun::command(size.nodes, &self.launcher);
        command.args([device, &(size.ranks / size.nodes).to_string(), "--quiet"]);
        command.arg(&case.config).args(["--resume", "never", "--run-dir"]).arg(run_dir);
        let batch = format!("train.batch_size_per_rank={}", size.batch_per_rank);
        let made_up = self.data.is_none().then_some(SYNTHETIC).into_iter().flatten();
        let own = ["train.global_batch_size=null".to_owned(), batch].into_iter();
        let own = own.chain(made_up.map(str::to_owned));
        let own = own.chain(self.train_images.map(|images| format!("data.train_images={images}")));
        for set in own.chain(self.overrides.iter().chain(overrides).cloned()) {
            command.arg("--set").arg(set);
        }
        if let Some(data) = &self.data {
            command.env("CIFAR10_DIR", data);
        }
        command
    }
}

fn read_metrics(run_dir: &Path) -> Result<String> {
    let path = RunDir::at(run_dir).metrics_path();
    fs::read_to_string(&path).map_err(|source| BenchError::File { path, source })
}
