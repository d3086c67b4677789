//! A study file: its keys and their defaults. Says nothing of how its runs end.

use std::path::{Path, PathBuf};

use job::config::{ConfigError, Document};
use serde::Deserialize;
use serde_yaml::Mapping;

/// What is compared, and what is drawn of it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StudyFile {
    /// What it is about.
    pub title: String,
    /// Where the question or the figure was published.
    #[serde(default)]
    pub source: String,
    /// The configuration that all runs start from; relative to the study file.
    pub config: PathBuf,
    /// Ranks of a run.
    #[serde(default = "one")]
    pub ranks: usize,
    /// Each run is repeated with each.
    #[serde(default = "first_seed")]
    pub seeds: Vec<u64>,
    /// Dotted keys and their values, of all runs.
    #[serde(default)]
    pub set: Mapping,
    /// Dotted keys and lists of values: every combination is run.
    #[serde(default)]
    pub grid: Mapping,
    /// Runs one by one, each with every combination of the grid.
    #[serde(default)]
    pub runs: Vec<RunEntry>,
    /// What is drawn.
    #[serde(default)]
    pub figures: Vec<FigureEntry>,
    /// What `--reduced` changes.
    #[serde(default)]
    pub reduced: Reduced,
}

/// A run that is listed.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunEntry {
    /// In the names of its run directories.
    pub name: String,
    /// What it starts from instead.
    pub config: Option<PathBuf>,
    /// Dotted keys and their values.
    #[serde(default)]
    pub set: Mapping,
}

/// What `--reduced` changes: keys that are given take the place of the study's, those of `set` and of
/// `grid` one by one.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Reduced {
    /// Ranks of a run.
    pub ranks: Option<usize>,
    /// Each run is repeated with each.
    pub seeds: Option<Vec<u64>>,
    /// Besides those of the study.
    pub set: Mapping,
    /// Besides those of the study.
    pub grid: Mapping,
    /// Instead of those of the study.
    pub runs: Option<Vec<RunEntry>>,
}

/// A figure of lines.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FigureEntry {
    /// Of its files, without an extension.
    pub name: String,
    /// `step`, `epoch`, `global_batch_size`, `parameters`, `multiply_adds`, or a dotted key of the configuration.
    pub x: String,
    /// One, or two of the same kind: the second is dashed.
    pub y: Vec<Metric>,
    /// One line for each combination of their values; default: of all keys that differ.
    pub group_by: Option<Vec<String>>,
    /// Side by side; default: one with all runs.
    #[serde(default)]
    pub panels: Vec<PanelEntry>,
}

/// A part of a figure.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PanelEntry {
    /// Above it.
    pub title: String,
    /// Dotted keys and the values that a run must have one of to be shown.
    #[serde(default)]
    pub only: Mapping,
}

/// What is drawn. Those of training are measured while weights change, on augmented images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// 1 - the test accuracy.
    TestError,
    /// 1 - the training accuracy.
    TrainError,
    /// Of the test images.
    TestAccuracy,
    /// Of the training images.
    TrainAccuracy,
    /// Cross-entropy of the test images.
    TestLoss,
    /// Cross-entropy of the training images.
    TrainLoss,
}

fn one() -> usize {
    1
}

fn first_seed() -> Vec<u64> {
    vec![0]
}

/// Reads the study at `path`; paths in it are relative to where it lies.
///
/// # Errors
/// [`ConfigError`], which names file, line and key.
pub fn read(path: &Path) -> Result<(StudyFile, Document), ConfigError> {
    let (mut file, document) = Document::read::<StudyFile>(path)?;
    let folder = path.parent().unwrap_or(Path::new(""));
    file.config = folder.join(&file.config);
    for run in file.runs.iter_mut().chain(file.reduced.runs.iter_mut().flatten()) {
        run.config = run.config.take().map(|config| folder.join(config));
    }
    Ok((file, document))
}
