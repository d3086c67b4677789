//! What is known of a run before it starts, and how much of it is left to do.

use std::path::{Path, PathBuf};

use job::ExitCode;
use job::config::{
    self, Config, ConfigError, Data, Dataset, Difference, Document, Fallback,
    differences_in_training,
};
use job::dataset::{self, Outline};
use job::network::Network;
use job::run_dir::RunDir;

use super::expand::{Expanded, Invalid, Override, RunSpec};
use super::images::StudyImages;
use super::results::{Reached, Results};
use crate::error::LaunchError;
use crate::plan::{Device, Layout, Plan};
use crate::topology::Topology;

/// A run that can be started.
#[derive(Debug)]
pub struct Planned {
    /// The run as the study describes it.
    pub spec: RunSpec,
    /// The full configuration of the run.
    pub config: Config,
    /// Run directory.
    pub root: PathBuf,
    /// Optimizer updates of the whole run.
    pub steps: u64,
    /// Optimizer updates per epoch.
    pub steps_per_epoch: usize,
    /// Passes over the training set, the last one perhaps incomplete.
    pub epochs: usize,
    /// Images per step of all ranks together.
    pub global_batch_size: usize,
    /// Number of trainable parameters.
    pub parameters: usize,
    /// Multiply-adds of the network for one image.
    pub multiply_adds: u64,
    /// Results that the run has recorded so far.
    pub results: Results,
    /// How much of the run is left to do.
    pub state: State,
    /// Whether synthetic images replace those of the run, which cannot be obtained.
    pub falls_back: bool,
}

/// How much of a run is left to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Everything: the run was never started.
    New,
    /// The rest: the run resumes from its newest checkpoint.
    Begun,
    /// Nothing.
    Done,
}

impl State {
    /// Returns the state of a run of `steps` steps. `holds_run`: whether it was ever started. `end`: the
    /// steps in its last summary, if it has one; it may have been a shorter run then.
    pub fn of(holds_run: bool, end: Option<u64>, steps: u64) -> Self {
        match (holds_run, end) {
            (false, _) => Self::New,
            (true, Some(taken)) if taken == steps => Self::Done,
            (true, _) => Self::Begun,
        }
    }

    /// Returns the state as a word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Begun => "begun",
            Self::Done => "done",
        }
    }
}

/// Device and ranks of the runs of a study.
#[derive(Debug, Clone, Copy)]
pub struct RunResources<'a> {
    /// What runs compute on.
    pub device: Device,
    /// Number of ranks of each run.
    pub ranks: usize,
    /// Topology of this machine.
    pub topology: &'a Topology,
}

impl Planned {
    fn new(
        spec: RunSpec,
        config: Config,
        outline: &Outline,
        root: PathBuf,
        resources: RunResources<'_>,
    ) -> Result<Self, LaunchError> {
        let layout = Layout::single(resources.ranks);
        let plan = Plan::new(&config, outline, resources.device, layout, resources.topology)?;
        let network = Network::new(&config.model, outline.shape, outline.classes).summary();
        let epochs = plan.total_steps.div_ceil(plan.steps_per_epoch.max(1) as u64);
        let mut planned = Self {
            root,
            steps: plan.total_steps,
            steps_per_epoch: plan.steps_per_epoch,
            epochs: epochs as usize,
            global_batch_size: plan.global_batch_size,
            parameters: network.parameters,
            multiply_adds: network.multiply_adds,
            results: Results::default(),
            state: State::New,
            falls_back: false,
            config,
            spec,
        };
        planned.refresh();
        planned.can_go_on(resources.ranks)?;
        Ok(planned)
    }

    /// Refuses an existing run over another number of ranks, which makes another global batch, or of more
    /// steps: its results would be taken for those of the run that the study asks for.
    fn can_go_on(&self, ranks: usize) -> Result<(), LaunchError> {
        let run_dir = RunDir::at(&self.root);
        let reached = [self.results.end, Reached::of_newest_checkpoint(&run_dir)];
        let Some(Reached { step, world_size }) =
            reached.into_iter().flatten().max_by_key(|reached| reached.step)
        else {
            return Ok(());
        };
        let mut differences = Vec::new();
        if world_size != ranks && self.config.train.global_batch_size.is_none() {
            differences.push(difference("ranks", world_size as u64, ranks as u64));
        }
        if step > self.steps {
            differences.push(difference("steps", step, self.steps));
        }
        refuse(&self.root, &differences)
    }

    /// Reads results and state from the run directory again. Metrics that cannot be read, as a power cut may
    /// leave them, count as none: the trainer drops such lines when the run is resumed.
    pub fn refresh(&mut self) {
        let run_dir = RunDir::at(&self.root);
        self.results = Results::read(&run_dir).unwrap_or_else(|error| {
            tracing::warn!("{error}");
            Results::default()
        });
        let end = self.results.end.map(|end| end.step);
        self.state = State::of(run_dir.holds_run(), end, self.steps);
    }

    /// Returns the value of the dotted `key`: the one that the study sets, or else the one of the
    /// configuration, unless it is null.
    pub fn value(&self, key: &str) -> Option<serde_yaml::Value> {
        let of_config = || {
            let whole = serde_yaml::to_value(&self.config).ok()?;
            let value = key.split('.').try_fold(&whole, |at, part| at.get(part));
            value.filter(|value| !value.is_null()).cloned()
        };
        self.spec.value(key).cloned().or_else(of_config)
    }

    /// Makes the run train on `taken`, the images that could be obtained.
    ///
    /// # Errors
    /// [`LaunchError`] when the existing run has other images: real and synthetic ones are not compared in
    /// one table.
    pub fn take_images(
        &mut self,
        taken: &Data,
        resources: RunResources<'_>,
    ) -> Result<(), LaunchError> {
        let falls_back = self.config.data.dataset != taken.dataset;
        let config = Config { data: taken.clone(), ..self.config.clone() };
        if let Some(before) = config_before(&self.root)? {
            same_training(&self.root, &before, &config)?;
        }
        let outline = dataset::outline(taken)?;
        let planned = Self::new(self.spec.clone(), config, &outline, self.root.clone(), resources)?;
        *self = Self { falls_back, ..planned };
        Ok(())
    }

    /// Returns the images of the existing run, if there is one.
    ///
    /// # Errors
    /// [`LaunchError`] when its configuration cannot be read.
    pub fn images_before(&self) -> Result<Option<Data>, LaunchError> {
        Ok(config_before(&self.root)?.map(|before| before.data))
    }

    /// Returns the step at the end of `epoch`, which counts from 1.
    pub fn step_after(&self, epoch: usize) -> u64 {
        ((epoch * self.steps_per_epoch) as u64).min(self.steps)
    }
}

/// Reads the configuration of every run, and its results so far in `out`. `images` are the outlines that are
/// known already; others are determined and added.
///
/// # Errors
/// [`LaunchError`], which names the key in the study file that makes a configuration wrong, or the run in
/// `out` that has another configuration.
pub fn plan(
    expanded: Expanded,
    document: &Document,
    resources: RunResources<'_>,
    out: &Path,
    images: &mut StudyImages,
) -> Result<Vec<Planned>, LaunchError> {
    let mut one = |spec: RunSpec| {
        let arguments: Vec<String> = spec.overrides.iter().map(Override::argument).collect();
        let config = config::load(&spec.config, &arguments)
            .map_err(|error| in_study(error, &spec, &arguments, document))?;
        let root = out.join("runs").join(&spec.name);
        let taken = data_before(&root, &config)?;
        let outline = images.outline(&taken)?;
        let of_taken = Config { data: taken, ..config.clone() };
        let planned = Planned::new(spec, of_taken, &outline, root, resources)?;
        Ok(Planned { config, ..planned })
    };
    expanded.runs.into_iter().map(&mut one).collect()
}

/// Converts an error about an override into one that names its place in the study file.
fn in_study(
    error: ConfigError,
    spec: &RunSpec,
    arguments: &[String],
    document: &Document,
) -> ConfigError {
    use config::Location::Override;
    let (ConfigError::Key { location: Override { text }, problem, .. }
    | ConfigError::Syntax { location: Override { text }, problem }) = &error
    else {
        return error;
    };
    match arguments.iter().rposition(|argument| argument == text) {
        Some(index) => document.wrong(&spec.overrides[index].place, problem.clone()),
        None => error,
    }
}

/// Returns the images of the existing run in `root`, whose configuration must be the same, or those of
/// `config` if there is no run yet.
fn data_before(root: &Path, config: &Config) -> Result<Data, LaunchError> {
    let Some(before) = config_before(root)? else { return Ok(config.data.clone()) };
    let mut config = config.clone();
    if before.data.dataset == Dataset::Synthetic && config.data.fallback == Fallback::Synthetic {
        // A run that falls back changes the configuration that it stores in the same way.
        config.data.fall_back();
    }
    same_training(root, &before, &config)?;
    Ok(config.data)
}

fn config_before(root: &Path) -> Result<Option<Config>, LaunchError> {
    let run_dir = RunDir::at(root);
    if !run_dir.holds_run() {
        return Ok(None);
    }
    Ok(Some(config::load(&run_dir.config_path(), &[])?))
}

fn same_training(root: &Path, before: &Config, config: &Config) -> Result<(), LaunchError> {
    refuse(root, &differences_in_training(before, config))
}

fn difference(what: &str, before: u64, now: u64) -> Difference {
    Difference { path: what.to_owned(), old: before.to_string(), new: now.to_string() }
}

/// Returns an error if there are `differences` from the run in `root`.
fn refuse(root: &Path, differences: &[Difference]) -> Result<(), LaunchError> {
    if differences.is_empty() {
        return Ok(());
    }
    let lines: Vec<String> = differences.iter().map(ToString::to_string).collect();
    Err(failed(
        ExitCode::Usage,
        format!(
            "{} holds a run of another configuration: {}; give another --out, or move it away",
            root.display(),
            lines.join("; ")
        ),
    ))
}

/// Converts an error in a study file into one that names file and line.
pub fn invalid(document: &Document, invalid: Invalid) -> LaunchError {
    document.wrong(&invalid.place, invalid.problem).into()
}

fn failed(exit_code: ExitCode, text: String) -> LaunchError {
    LaunchError::Study { exit_code, text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_done_when_its_summary_has_all_steps() {
        assert_eq!(State::of(false, None, 100), State::New);
        assert_eq!(State::of(true, None, 100), State::Begun);
        assert_eq!(State::of(true, Some(50), 100), State::Begun, "it was to be shorter then");
        assert_eq!(State::of(true, Some(100), 100), State::Done);
        assert_eq!(State::of(true, Some(150), 100), State::Begun, "not what is reported as done");
    }
}
