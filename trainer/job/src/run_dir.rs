//! The directory that a run leaves behind, and who may write to it.
//!
//! It is a run's once `config.yaml` is in it; that file is written whole or not at all.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rustix::fs::{FlockOperation, flock};
use time::OffsetDateTime;
use time::macros::format_description;

use crate::config::{self, Config, ConfigError, Difference, differences_in_training};
use crate::{ExitCode, files};

/// Where a run starts from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Resume {
    /// The newest good checkpoint of the run directory, where it holds a run.
    #[default]
    Auto,
    /// The beginning, in a directory that holds no run.
    Never,
    /// Another run's directory or a checkpoint, in a directory that holds no run, or one that began
    /// there: then its own newest good checkpoint, where it has one.
    From(PathBuf),
}

impl FromStr for Resume {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "never" => Ok(Self::Never),
            "" => Err("expected auto, never, or a directory".to_string()),
            folder => Ok(Self::From(PathBuf::from(folder))),
        }
    }
}

impl std::fmt::Display for Resume {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Never => f.write_str("never"),
            Self::From(folder) => write!(f, "{}", folder.display()),
        }
    }
}

/// Why a run directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RunDirError {
    /// It already holds a run, and that one is not to be resumed.
    #[error(
        "{} already holds a run, and nothing of it is overwritten; give another --run-dir, or \
         --resume auto to go on with it", root.display()
    )]
    HoldsRun {
        /// The run directory.
        root: PathBuf,
    },
    /// Its run was configured differently in what shapes training.
    #[error(
        "{} holds a run with another configuration, so it cannot go on from there: {}; give the \
         same configuration or another --run-dir", root.display(), listed(differences)
    )]
    Different {
        /// The run directory.
        root: PathBuf,
        /// What differs; never empty.
        differences: Vec<Difference>,
    },
    /// What its run was configured with cannot be read.
    #[error("{} holds a run whose configuration cannot be read: {source}", root.display())]
    Config {
        /// The run directory.
        root: PathBuf,
        /// Why not.
        #[source]
        source: ConfigError,
    },
    /// There is nothing to resume from.
    #[error("--resume {}: no such directory", from.display())]
    NoSource {
        /// As given.
        from: PathBuf,
    },
    /// Another process has it.
    #[error("{} is in use by {holder} (lock {})", root.display(), lock.display())]
    InUse {
        /// The run directory.
        root: PathBuf,
        /// The lock file.
        lock: PathBuf,
        /// Who, as far as it can be told.
        holder: String,
    },
    /// It cannot be written to.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

fn listed(differences: &[Difference]) -> String {
    let lines: Vec<String> = differences.iter().map(ToString::to_string).collect();
    lines.join("; ")
}

impl RunDirError {
    /// [`ExitCode::Setup`] where it cannot be written to, else [`ExitCode::Usage`].
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Write { .. } => ExitCode::Setup,
            _ => ExitCode::Usage,
        }
    }
}

/// The symbolic link, beside checkpoints, to the newest of them.
pub const LATEST: &str = "latest";

/// A run's directory. Locked from [`open`](Self::open) until it is dropped.
#[derive(Debug)]
pub struct RunDir {
    root: PathBuf,
    _lock: Option<File>,
}

impl RunDir {
    /// `runs/<config stem>-<UTC yyyymmddThhmmssZ>`.
    pub fn default_path(config: &Path, now: OffsetDateTime) -> PathBuf {
        let stem = config.file_stem().map_or("run".into(), |stem| stem.to_string_lossy());
        let format = format_description!("[year][month][day]T[hour][minute][second]Z");
        let utc = now.to_offset(time::UtcOffset::UTC);
        let time = utc.format(&format).unwrap_or_else(|_| utc.unix_timestamp().to_string());
        Path::new("runs").join(format!("{stem}-{time}"))
    }

    /// Makes `root` ready for a run of `config` and locks it. Writes `config.yaml`, or replaces the
    /// one there where its run may go on as `config`.
    ///
    /// # Errors
    /// [`RunDirError`], and then a run that was there is untouched.
    pub fn open(root: &Path, config: &Config, resume: &Resume) -> Result<Self, RunDirError> {
        let wrong = |path: &Path, source| RunDirError::Write { path: path.to_path_buf(), source };
        let here = Self::at(root);
        // A run that has begun from there, and has saved since, does not need it any more.
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

    /// A directory that another process opened: its paths, without lock or check.
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
        let before = config::load(&self.config_path(), &[])
            .map_err(|source| RunDirError::Config { root: root.clone(), source })?;
        let differences = differences_in_training(&before, config);
        match differences.is_empty() {
            true => Ok(()),
            false => Err(RunDirError::Different { root, differences }),
        }
    }

    /// Keeps where a run starts from that is not the beginning: until its first checkpoint, nothing
    /// else tells.
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

    /// The checkpoint or run that this one began from, where it was told to with [`Resume::From`].
    pub fn origin(&self) -> Option<PathBuf> {
        let path = fs::read(self.origin_path()).ok()?;
        Some(PathBuf::from(OsString::from_vec(path)))
    }

    fn origin_path(&self) -> PathBuf {
        self.root.join("resumed_from")
    }

    /// Whether a run was started here.
    pub fn holds_run(&self) -> bool {
        self.config_path().exists()
    }

    /// Whether there is a checkpoint to go on from.
    pub fn has_checkpoint(&self) -> bool {
        self.latest_checkpoint().exists()
    }

    /// The newest checkpoint: a symbolic link, where there is one.
    pub fn latest_checkpoint(&self) -> PathBuf {
        self.checkpoints_dir().join(LATEST)
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The configuration in full.
    pub fn config_path(&self) -> PathBuf {
        self.root.join("config.yaml")
    }

    /// One JSON object a line, by rank 0.
    pub fn metrics_path(&self) -> PathBuf {
        self.root.join("metrics.jsonl")
    }

    /// One JSON object a line, by the launcher.
    pub fn events_path(&self) -> PathBuf {
        self.root.join("events.jsonl")
    }

    /// What `launcher doctor` has measured, in a run directory of its own.
    pub fn all_reduce_path(&self) -> PathBuf {
        self.root.join("all_reduce.json")
    }

    /// Accuracy and loss by epoch.
    pub fn curves_svg_path(&self) -> PathBuf {
        self.root.join("curves.svg")
    }

    /// The same as a bitmap.
    pub fn curves_png_path(&self) -> PathBuf {
        self.root.join("curves.png")
    }

    /// Events for TensorBoard, one file a process of rank 0.
    pub fn tensorboard_dir(&self) -> PathBuf {
        self.root.join("tensorboard")
    }

    /// One folder a checkpoint, and the links `latest` and `best`.
    pub fn checkpoints_dir(&self) -> PathBuf {
        self.root.join("checkpoints")
    }

    /// One file a rank.
    pub fn logs_dir(&self) -> PathBuf {
        self.root.join("logs")
    }

    /// What a rank wrote to its standard output and error.
    pub fn log_path(&self, rank: usize) -> PathBuf {
        self.logs_dir().join(format!("rank-{rank}.log"))
    }
}

/// Takes `root/.lock`, which the kernel releases when this process and those that it starts have ended,
/// however they end: while a rank runs on after its launcher was killed, nobody else may write here.
///
/// # Errors
/// [`RunDirError::InUse`] when another process has it, else [`RunDirError::Write`].
pub fn lock(root: &Path) -> Result<File, RunDirError> {
    let path = root.join(".lock");
    let wrong = |source| RunDirError::Write { path: path.clone(), source };
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(wrong)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut holder = String::new();
            let _ = file.read_to_string(&mut holder);
            let holder = match holder.trim() {
                "" => "another process".to_string(),
                known => known.to_string(),
            };
            return Err(RunDirError::InUse { root: root.to_path_buf(), lock: path, holder });
        }
        Err(error) => return Err(wrong(error.into())),
    }
    let holder = format!("process {} on {}\n", std::process::id(), host());
    let noted = file
        .set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| file.write_all(holder.as_bytes()));
    noted.map_err(wrong)?;
    rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::empty())
        .map_err(|source| wrong(source.into()))?;
    Ok(file)
}

/// Without looking at the disk, so that it is the same when the folder is gone.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf())
}

fn host() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    if name.trim().is_empty() { "this machine".to_string() } else { name.trim().to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(seed: u64) -> Config {
        let mut config = Config::default();
        config.train.seed = seed;
        config
    }

    #[test]
    fn the_default_path_is_the_configs_name_and_the_utc_time() {
        let now = time::macros::datetime!(2025-03-04 01:02:03 +2);
        assert_eq!(
            RunDir::default_path(Path::new("configs/resnet18.yaml"), now),
            Path::new("runs/resnet18-20250303T230203Z")
        );
    }

    #[test]
    fn resume_is_read_from_a_command_line() {
        assert_eq!("auto".parse(), Ok(Resume::Auto));
        assert_eq!("never".parse(), Ok(Resume::Never));
        assert_eq!("runs/a".parse(), Ok(Resume::From(PathBuf::from("runs/a"))));
        assert!("".parse::<Resume>().is_err());
    }

    #[test]
    fn a_new_directory_gets_its_folders_and_its_configuration() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("runs/a");
        for resume in [Resume::Never, Resume::Auto] {
            let run_dir = RunDir::open(&root, &config(3), &resume).unwrap();
            assert!(run_dir.holds_run());
            assert!(run_dir.checkpoints_dir().is_dir());
            assert_eq!(run_dir.log_path(1), root.join("logs/rank-1.log"));
            assert_eq!(config::load(&run_dir.config_path(), &[]).unwrap(), config(3));
        }
    }

    #[test]
    fn a_run_goes_on_when_what_shapes_training_is_the_same() {
        let folder = tempfile::tempdir().unwrap();
        drop(RunDir::open(folder.path(), &config(3), &Resume::Auto).unwrap());
        let mut longer = config(3);
        longer.train.epochs = 99;
        let run_dir = RunDir::open(folder.path(), &longer, &Resume::Auto).unwrap();
        assert_eq!(config::load(&run_dir.config_path(), &[]).unwrap(), longer);
    }

    #[test]
    fn another_configuration_is_refused_and_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        drop(RunDir::open(folder.path(), &config(3), &Resume::Auto).unwrap());
        let error = RunDir::open(folder.path(), &config(4), &Resume::Auto).unwrap_err();
        assert_eq!(error.exit_code(), ExitCode::Usage);
        assert!(error.to_string().contains("train.seed: 3 before, 4 now"), "{error}");
        let kept = config::load(&RunDir::at(folder.path()).config_path(), &[]).unwrap();
        assert_eq!(kept, config(3));
    }

    #[test]
    fn a_run_is_not_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        drop(RunDir::open(folder.path(), &config(3), &Resume::Auto).unwrap());
        for resume in [Resume::Never, Resume::From(folder.path().to_path_buf())] {
            let error = RunDir::open(folder.path(), &config(3), &resume).unwrap_err();
            assert!(matches!(error, RunDirError::HoldsRun { .. }), "{error}");
        }
        let missing = Resume::From(folder.path().join("missing"));
        let error = RunDir::open(&folder.path().join("b"), &config(3), &missing).unwrap_err();
        assert!(matches!(error, RunDirError::NoSource { .. }), "{error}");
        assert!(!folder.path().join("b").exists());
    }

    #[test]
    fn a_run_that_began_from_another_goes_on_by_the_same_command_or_by_auto() {
        let folder = tempfile::tempdir().unwrap();
        let [a, b, c] = ["a", "b", "c"].map(|name| folder.path().join(name));
        for other in [&a, &c] {
            drop(RunDir::open(other, &config(3), &Resume::Auto).unwrap());
        }
        let from = Resume::From(a.clone());
        for resume in [&from, &from, &Resume::Auto] {
            let run_dir = RunDir::open(&b, &config(3), resume).unwrap();
            assert_eq!(run_dir.origin(), Some(a.clone()));
        }
        let error = RunDir::open(&b, &config(3), &Resume::From(c.clone())).unwrap_err();
        assert!(matches!(error, RunDirError::HoldsRun { .. }), "{error}");
        let error = RunDir::open(&b, &config(4), &from).unwrap_err();
        assert!(matches!(error, RunDirError::Different { .. }), "{error}");
        assert_eq!(RunDir::at(&c).origin(), None);

        // Once it has checkpoints of its own, where it began may go.
        fs::remove_dir_all(&a).unwrap();
        let error = RunDir::open(&b, &config(3), &from).unwrap_err();
        assert!(matches!(error, RunDirError::NoSource { .. }), "{error}");
        fs::create_dir(RunDir::at(&b).latest_checkpoint()).unwrap();
        drop(RunDir::open(&b, &config(3), &from).unwrap());
    }

    #[test]
    fn two_at_once_are_refused_and_the_holder_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let first = RunDir::open(folder.path(), &config(3), &Resume::Auto).unwrap();
        let error = RunDir::open(folder.path(), &config(3), &Resume::Auto).unwrap_err().to_string();
        assert!(error.contains(&format!("process {} on ", std::process::id())), "{error}");
        assert!(error.contains(".lock"), "{error}");
        drop(first);
        RunDir::open(folder.path(), &config(3), &Resume::Auto).unwrap();
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        let error = RunDir::open(&file, &config(3), &Resume::Auto).unwrap_err();
        assert_eq!(error.exit_code(), ExitCode::Setup);
        assert!(error.to_string().contains("/file"), "{error}");
    }
}
