//! The directory of a run: its files, and its lock.
//!
//! A directory holds a run as soon as `config.yaml` is in it; that file is written atomically.

mod error;
mod lock;
mod resume;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use time::OffsetDateTime;
use time::macros::format_description;

use crate::config::{self, Config, differences_in_training};
use crate::files;

pub use error::RunDirError;
pub use lock::lock;
pub use resume::Resume;

/// Name of the symbolic link to the newest checkpoint, in the folder of checkpoints.
pub const LATEST: &str = "latest";

/// The directory of a run. [`open`](Self::open) locks it until the value is dropped.
#[derive(Debug)]
pub struct RunDir {
    root: PathBuf,
    _lock: Option<File>,
}

impl RunDir {
    /// Returns `runs/<config stem>-<UTC yyyymmddThhmmssZ>`.
    pub fn default_path(config: &Path, now: OffsetDateTime) -> PathBuf {
        let stem = config.file_stem().map_or("run".into(), |stem| stem.to_string_lossy());
        let format = format_description!("[year][month][day]T[hour][minute][second]Z");
        let utc = now.to_offset(time::UtcOffset::UTC);
        let time = utc.format(&format).unwrap_or_else(|_| utc.unix_timestamp().to_string());
        Path::new("runs").join(format!("{stem}-{time}"))
    }

    /// Prepares `root` for a run of `config` and locks it. Writes `config.yaml`, or replaces it if the run in
    /// `root` may be resumed with `config`.
    ///
    /// # Errors
    /// [`RunDirError`]; a run that is in `root` is then unchanged.
    pub fn open(root: &Path, config: &Config, resume: &Resume) -> Result<Self, RunDirError> {
        let wrong = |path: &Path, source| RunDirError::Write { path: path.to_path_buf(), source };
        let here = Self::at(root);
        // A run that was started from `from`, and has saved a checkpoint since, no longer needs `from`.
        if let Resume::From(from) = resume
            && !from.is_dir()
            && !(here.has_checkpoint() && here.origin() == Some(absolute(from)))
        {
            return Err(RunDirError::NoSource { from: from.clone() });
        }
        fs::create_dir_all(root).map_err(|source| wrong(root, source))?;
        let lock = lock(root)?;
        let run_dir = Self { root: root.to_path_buf(), _lock: Some(lock) };
        run_dir.check(config, resume)?;
        if !run_dir.holds_run() {
            run_dir.note_origin(resume).map_err(|source| wrong(&run_dir.origin_path(), source))?;
        }
        for folder in [run_dir.checkpoints_dir(), run_dir.logs_dir()] {
            fs::create_dir_all(&folder).map_err(|source| wrong(&folder, source))?;
        }
        let path = run_dir.config_path();
        files::write_atomically(&path, config::to_yaml(config).as_bytes())
            .map_err(|source| wrong(&path, source))?;
        Ok(run_dir)
    }

    /// Returns the paths of a directory that another process has opened, without lock or checks.
    pub fn at(root: &Path) -> Self {
        Self { root: root.to_path_buf(), _lock: None }
    }

    fn check(&self, config: &Config, resume: &Resume) -> Result<(), RunDirError> {
        let root = self.root.clone();
        if !self.holds_run() {
            return Ok(());
        }
        let goes_on = match resume {
            Resume::Auto => true,
            Resume::Never => false,
            Resume::From(from) => self.origin() == Some(absolute(from)),
        };
        if !goes_on {
            return Err(RunDirError::HoldsRun { root });
        }
        if !self.has_progress() {
            return Ok(());
        }
        let before = config::load(&self.config_path(), &[])
            .map_err(|source| RunDirError::Config { root: root.clone(), source })?;
        let differences = differences_in_training(&before, config);
        match differences.is_empty() {
            true => Ok(()),
            false => Err(RunDirError::Different { root, differences }),
        }
    }

    /// Records the origin of a run that is resumed from elsewhere, which is known from nothing else until the
    /// run's first checkpoint.
    fn note_origin(&self, resume: &Resume) -> io::Result<()> {
        match resume {
            Resume::From(from) => files::write_atomically(
                &self.origin_path(),
                absolute(from).as_os_str().as_encoded_bytes(),
            ),
            Resume::Auto | Resume::Never => match fs::remove_file(self.origin_path()) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            },
        }
    }

    /// Returns the checkpoint or run directory that this run was started from with [`Resume::From`].
    pub fn origin(&self) -> Option<PathBuf> {
        let path = fs::read(self.origin_path()).ok()?;
        Some(PathBuf::from(OsString::from_vec(path)))
    }

    fn origin_path(&self) -> PathBuf {
        self.root.join("resumed_from")
    }

    /// Returns whether a run was started in this directory.
    pub fn holds_run(&self) -> bool {
        self.config_path().exists()
    }

    /// Returns whether the run has a record or a checkpoint, or may have one that cannot be seen. A run that
    /// failed before may have been given a wrong configuration.
    fn has_progress(&self) -> bool {
        let has_records = match fs::metadata(self.metrics_path()) {
            Ok(file) => file.len() > 0,
            Err(error) => error.kind() != io::ErrorKind::NotFound,
        };
        has_records || self.has_checkpoint()
    }

    /// Returns whether there is a folder named like a checkpoint, complete or not, or whether that cannot be
    /// found out.
    pub fn has_checkpoint(&self) -> bool {
        let is_checkpoint = |entry: io::Result<fs::DirEntry>| {
            let name = entry.map(|entry| entry.file_name()).unwrap_or_default();
            let name = name.to_string_lossy();
            name.starts_with("epoch-") || name.starts_with("step-")
        };
        match fs::read_dir(self.checkpoints_dir()) {
            Ok(mut entries) => entries.any(is_checkpoint),
            Err(error) => error.kind() != io::ErrorKind::NotFound,
        }
    }

    /// Path of the symbolic link to the newest checkpoint, which need not exist.
    pub fn latest_checkpoint(&self) -> PathBuf {
        self.checkpoints_dir().join(LATEST)
    }

    /// Path of the directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Path of the complete configuration.
    pub fn config_path(&self) -> PathBuf {
        self.root.join("config.yaml")
    }

    /// Path of the metrics: one JSON object per line, written by rank 0.
    pub fn metrics_path(&self) -> PathBuf {
        self.root.join("metrics.jsonl")
    }

    /// Path of the events: one JSON object per line, written by the launcher.
    pub fn events_path(&self) -> PathBuf {
        self.root.join("events.jsonl")
    }

    /// Path of the all-reduce times that `launcher doctor` measures, in a run directory of its own.
    pub fn all_reduce_path(&self) -> PathBuf {
        self.root.join("all_reduce.json")
    }

    /// Path of the curves of accuracy and loss by epoch, as SVG.
    pub fn curves_svg_path(&self) -> PathBuf {
        self.root.join("curves.svg")
    }

    /// Path of the curves as PNG.
    pub fn curves_png_path(&self) -> PathBuf {
        self.root.join("curves.png")
    }

    /// Path of the folder of TensorBoard events, one file per process of rank 0.
    pub fn tensorboard_dir(&self) -> PathBuf {
        self.root.join("tensorboard")
    }

    /// Path of the folder of checkpoints: one folder per checkpoint, and the links `latest` and `best`.
    pub fn checkpoints_dir(&self) -> PathBuf {
        self.root.join("checkpoints")
    }

    /// Path of the folder of logs, one file per rank.
    pub fn logs_dir(&self) -> PathBuf {
        self.root.join("logs")
    }

    /// Path of the file with a rank's standard output and error.
    pub fn log_path(&self, rank: usize) -> PathBuf {
        self.logs_dir().join(format!("rank-{rank}.log"))
    }
}

/// Makes `path` absolute without access to the file system, so that the result is the same after the folder
/// is gone.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf())
}
