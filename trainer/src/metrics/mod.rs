//! What is measured of a run: records written to `metrics.jsonl` and for TensorBoard, and curves drawn from them.
//!
//! Rank 0 alone writes them.

mod curves;
#[cfg(test)]
mod samples;
mod tensorboard;
mod writer;

use std::io;
use std::path::{Path, PathBuf};

use job::files::write_atomically;
use job::metrics::{EpochRecord, ReadError, Record, read};
use job::run_dir::RunDir;

pub use tensorboard::EventFile;
pub use writer::Writer;

/// Why metrics cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// A file cannot be written: the disk is full, for one.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// What is there cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A picture cannot be drawn.
    #[error("cannot draw {}: {problem}", path.display())]
    Draw {
        /// The file.
        path: PathBuf,
        /// Why not.
        problem: String,
    },
}

/// Draws `curves.svg` and `curves.png` from the epochs in `metrics.jsonl`; nothing before the first.
///
/// # Errors
/// [`MetricsError`], when a file cannot be read or written.
pub fn draw_curves(run_dir: &RunDir) -> Result<(), MetricsError> {
    let records = read(&run_dir.metrics_path())?;
    let epochs: Vec<EpochRecord> = records.into_iter().filter_map(Record::into_epoch).collect();
    if epochs.is_empty() {
        return Ok(());
    }
    let picture = curves::draw(&name(run_dir.root()), &epochs);
    let write = |path: PathBuf, bytes: &[u8]| {
        write_atomically(&path, bytes).map_err(|source| MetricsError::Write { path, source })
    };
    write(run_dir.curves_svg_path(), picture.to_svg().as_bytes())?;
    let path = run_dir.curves_png_path();
    let png =
        picture.to_png().map_err(|problem| MetricsError::Draw { path: path.clone(), problem })?;
    write(path, &png)
}

/// A run's name: that of its directory, also where that is given as `.`.
fn name(root: &Path) -> String {
    let absolute = root.canonicalize();
    let name = absolute.as_deref().unwrap_or(root).file_name();
    name.map_or(String::new(), |name| name.to_string_lossy().into_owned())
}
