//! Format of a study file: its keys and their defaults. Results of runs are not part of it.

use std::path::{Path, PathBuf};

use job::config::{ConfigError, Document};
use serde::Deserialize;
use serde_yaml::Mapping;

/// A study: which runs are compared, and what is drawn of them.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StudyFile {
    /// Title of the study.
    pub title: String,
    /// Where the question or the figure was published.
    #[serde(default)]
    pub source: String,
    /// The configuration that all runs start from, relative to the study file.
    pub config: PathBuf,
    /// Number of ranks of each run.
    #[serde(default = "one")]
    pub ranks: usize,
    /// Seeds; every run is repeated with each.
    #[serde(default = "first_seed")]
    pub seeds: Vec<u64>,
    /// Dotted keys and their values, for all runs.
    #[serde(default)]
    pub set: Mapping,
    /// Dotted keys and lists of values: every combination is run.
    #[serde(default)]
    pub grid: Mapping,
    /// Runs that are listed one by one, each of them with every combination of the grid.
    #[serde(default)]
    pub runs: Vec<RunEntry>,
    /// Figures to draw.
    #[serde(default)]
    pub figures: Vec<FigureEntry>,
    /// What `--reduced` changes.
    #[serde(default)]
    pub reduced: Reduced,
}

/// A run that is listed in `runs`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunEntry {
    /// Name of the run, which begins the names of its run directories.
    pub name: String,
    /// Configuration that the run starts from, instead of that of the study.
    pub config: Option<PathBuf>,
    /// Dotted keys and their values, for this run.
    #[serde(default)]
    pub set: Mapping,
}

/// What `--reduced` changes: keys that are given replace those of the study; within `set` and `grid`, one by
/// one.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Reduced {
    /// Number of ranks of each run.
    pub ranks: Option<usize>,
    /// Seeds; every run is repeated with each.
    pub seeds: Option<Vec<u64>>,
    /// Keys in addition to the study's `set`; they override the same keys there.
    pub set: Mapping,
    /// Keys in addition to the study's `grid`; they replace the same keys there.
    pub grid: Mapping,
    /// Runs instead of those of the study.
    pub runs: Option<Vec<RunEntry>>,
}

/// A line chart.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FigureEntry {
    /// Name of the figure's files, without extension.
    pub name: String,
    /// `step`, `epoch`, `global_batch_size`, `parameters`, `multiply_adds`, or a dotted key of the
    /// configuration.
    pub x: String,
    /// One metric, or two of the same quantity; the second is drawn dashed.
    pub y: Vec<Metric>,
    /// Dotted keys: there is one line for each combination of their values. Default: all keys that differ
    /// between runs, except the seed.
    pub group_by: Option<Vec<String>>,
    /// Panels side by side; default: one with all runs.
    #[serde(default)]
    pub panels: Vec<PanelEntry>,
}

/// A panel of a figure.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PanelEntry {
    /// Title above the panel.
    pub title: String,
    /// Dotted keys and their values, one or a list: the panel shows the runs that have one of them for every
    /// key.
    #[serde(default)]
    pub only: Mapping,
}

/// Quantity that is drawn. Metrics of training are measured while weights change, on augmented images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// 1 - the test accuracy.
    TestError,
    /// 1 - the training accuracy.
    TrainError,
    /// Accuracy on the test images.
    TestAccuracy,
    /// Accuracy on the training images.
    TrainAccuracy,
    /// Cross-entropy on the test images.
    TestLoss,
    /// Cross-entropy on the training images.
    TrainLoss,
}

fn one() -> usize {
    1
}

fn first_seed() -> Vec<u64> {
    vec![0]
}

/// Reads the study at `path`. Paths in the file are relative to its folder.
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
