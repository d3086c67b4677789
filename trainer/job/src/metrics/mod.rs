//! `metrics.jsonl`: its records, and reading them.

mod records;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

pub use records::{
    EmaRecord, EpochRecord, LossScaling, Record, StepRecord, StepSplit, SummaryRecord, TestRecord,
    Timed,
};

/// Steps at the start of a process that its speed leaves out: caches and clocks are still cold.
pub const WARMUP_STEPS: u64 = 10;

/// Why metrics cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A line is no record.
    #[error("{}:{line}: not a record: {source}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}

/// The records of the file at `path`, in order; none where there is no file.
///
/// An incomplete last line is left out: its writer was killed, or is writing it now.
///
/// # Errors
/// When the file cannot be read, or another line is no record.
pub fn read(path: &Path) -> Result<Vec<Record>, ReadError> {
    let text = read_bytes(path)?;
    complete_lines(&text)
        .enumerate()
        .map(|(index, line)| {
            serde_json::from_slice(line).map_err(|source| ReadError::Line {
                path: path.to_path_buf(),
                line: index + 1,
                source,
            })
        })
        .collect()
}

/// What the file holds; nothing where there is none.
///
/// # Errors
/// When it cannot be read.
pub fn read_bytes(path: &Path) -> Result<Vec<u8>, ReadError> {
    match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        read => read.map_err(|source| ReadError::File { path: path.to_path_buf(), source }),
    }
}

/// The lines that end with a newline, with it.
pub fn complete_lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use records::tests::step;

    #[test]
    fn an_incomplete_last_line_is_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        assert_eq!(read(&path).unwrap(), []);
        let line = serde_json::to_string(&step(10, 1)).unwrap();
        fs::write(&path, format!("{line}\n{line}\n{}", &line[..20])).unwrap();
        assert_eq!(read(&path).unwrap(), [step(10, 1), step(10, 1)]);
    }

    #[test]
    fn a_line_that_is_no_record_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let line = serde_json::to_string(&step(10, 1)).unwrap();
        fs::write(&path, format!("{line}\nhello\n{line}\n")).unwrap();
        let error = read(&path).unwrap_err().to_string();
        assert!(error.contains("metrics.jsonl:2: not a record: "), "{error}");
    }
}
