//! `metrics.jsonl`: its records, and how to read them.

mod records;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

pub use records::{
    EmaRecord, EpochRecord, LossScaling, Record, StepRecord, StepSplit, SummaryRecord, TestRecord,
    Timed,
};

/// Number of steps at the start of a process that are not counted in its images per second, since caches and
/// clocks are still cold.
pub const WARMUP_STEPS: u64 = 10;

/// Why a metrics file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    File {
        /// Path of the file.
        path: PathBuf,
        /// The I/O error.
        source: io::Error,
    },
    /// A line is not a record.
    #[error("{}:{line}: not a record: {source}", path.display())]
    Line {
        /// Path of the file.
        path: PathBuf,
        /// Line number, from 1.
        line: usize,
        /// The parser's error.
        source: serde_json::Error,
    },
}

/// Reads the records of the file at `path`, in order; none if there is no such file.
///
/// An incomplete last line is ignored: its writer was killed, or is writing it at the moment.
///
/// # Errors
/// When the file cannot be read, or any other line is not a record.
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

/// Reads the bytes of the file at `path`; none if there is no such file.
///
/// # Errors
/// When the file cannot be read.
pub fn read_bytes(path: &Path) -> Result<Vec<u8>, ReadError> {
    match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        read => read.map_err(|source| ReadError::File { path: path.to_path_buf(), source }),
    }
}

/// Returns the lines that end with a newline, including the newline.
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
