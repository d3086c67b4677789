//! Errors of data sets.

use std::io;
use std::path::{Path, PathBuf};

use super::published::published;
use super::{CIFAR10_DIR, image_folder};
use crate::ExitCode;
use crate::config::Dataset;

/// Why a data set is not available, and what a user can do about it.
#[derive(Debug, thiserror::Error)]
#[error("{problem}; {ways}")]
pub struct DataError {
    /// What is wrong.
    pub problem: Problem,
    /// Ways to obtain the data set.
    ways: String,
}

impl DataError {
    /// Makes an error with the ways to obtain the data set that remain after `problem`.
    pub(super) fn new(problem: Problem, dataset: Dataset) -> Self {
        let Some(published) = published(dataset) else {
            return Self { problem, ways: image_folder::WAYS.to_owned() };
        };
        let download = match problem {
            Problem::Missing { .. } => "set data.download to true; or ",
            _ => "",
        };
        let ways = format!("ways to get {}: {download}{}", published.title, published.by_hand);
        Self { problem, ways }
    }

    /// Returns [`ExitCode::Data`].
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::Data
    }
}

/// What is wrong with a data set or an image.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// The data set is not there and must not be downloaded.
    #[error("no {title} under {}, and data.download is false", root.display())]
    Missing {
        /// Name of the data set, as its authors write it.
        title: &'static str,
        /// `data.root`.
        root: PathBuf,
    },
    /// A folder of images does not exist, and cannot be downloaded.
    #[error("{}: no such folder", folder.display())]
    NoFolder {
        /// Path of the folder.
        folder: PathBuf,
    },
    /// `CIFAR10_DIR` does not name a folder with the files.
    #[error("{CIFAR10_DIR} is {}, {problem}; set it to the folder with the six .bin files or its parent, or unset it", folder.display())]
    EnvDir {
        /// The variable's value.
        folder: PathBuf,
        /// What is wrong with that folder.
        problem: String,
    },
    /// A file or folder is missing or not what it should be.
    #[error("{}: {problem}", file.display())]
    BadFile {
        /// Path of the file or folder.
        file: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A file or folder cannot be read.
    #[error("{}: cannot be read: {source}", file.display())]
    Read {
        /// Path of the file or folder.
        file: PathBuf,
        /// The I/O error.
        source: io::Error,
    },
    /// A file or folder cannot be written.
    #[error("{}: cannot be written: {source}", path.display())]
    Write {
        /// Path of the file or folder.
        path: PathBuf,
        /// The I/O error, such as a full disk.
        source: io::Error,
    },
    /// The data set cannot be downloaded.
    #[error("{url}: {problem}")]
    Download {
        /// Address of the file.
        url: String,
        /// Why the download failed.
        problem: String,
    },
    /// The downloaded file, even when downloaded again, has the wrong MD5.
    #[error("{url}: the downloaded file has MD5 {found} instead of {wanted}")]
    Md5 {
        /// Address of the file.
        url: String,
        /// MD5 of the downloaded file.
        found: String,
        /// MD5 of the data set's file.
        wanted: String,
    },
}

impl Problem {
    pub(super) fn bad(file: &Path, problem: impl Into<String>) -> Self {
        Self::BadFile { file: file.to_path_buf(), problem: problem.into() }
    }

    pub(super) fn read(file: &Path) -> impl Fn(io::Error) -> Self + '_ {
        |source| Self::Read { file: file.to_path_buf(), source }
    }

    pub(super) fn write(path: &Path) -> impl Fn(io::Error) -> Self + '_ {
        |source| Self::Write { path: path.to_path_buf(), source }
    }
}
