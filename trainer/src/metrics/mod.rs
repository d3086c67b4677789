//! Metrics of a run: records written to `metrics.jsonl` and as TensorBoard events, and curves drawn from
//! them.
//!
//! Only rank 0 writes them.

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
    /// A file cannot be written, for example because the disk is full.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// `metrics.jsonl` cannot be read.
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

/// Draws `curves.svg` and `curves.png` from the epoch records in `metrics.jsonl`. Does nothing if there are
/// none yet.
///
/// # Errors
/// [`MetricsError`], when a file cannot be read or written, or the PNG cannot be drawn.
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

/// Returns the name of a run, which is that of its directory even if `root` is a path such as `.`.
fn name(root: &Path) -> String {
    let absolute = root.canonicalize();
    let name = absolute.as_deref().unwrap_or(root).file_name();
    name.map_or(String::new(), |name| name.to_string_lossy().into_owned())
}
