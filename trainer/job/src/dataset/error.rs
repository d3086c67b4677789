//! Why there are no images.

use std::io;
use std::path::{Path, PathBuf};

use super::published::published;
use super::{CIFAR10_DIR, image_folder};
use crate::ExitCode;
use crate::config::Dataset;

/// Why a data set cannot be had, and what a user can do about it.
#[derive(Debug, thiserror::Error)]
#[error("{problem}; {ways}")]
pub struct DataError {
    /// What is wrong.
    pub problem: Problem,
    /// Ways to get the data set.
    ways: String,
}

impl DataError {
    /// With the ways that `problem` leaves.
    pub(super) fn new(problem: Problem, dataset: Dataset) -> Self {
        let Some(published) = published(dataset) else {
            return Self { problem, ways: image_folder::WAYS.to_owned() };
        };
        let download = match problem {
            // That has just been tried.
            Problem::Download { .. } | Problem::Md5 { .. } => "",
            _ => "data.download: true fetches it; or ",
        };
        let ways = format!("ways to get {}: {download}{}", published.title, published.by_hand);
        Self { problem, ways }
    }

    /// Always [`ExitCode::Data`].
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::Data
    }
}

/// What is wrong with a data set or an image.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// It is not there and must not be downloaded.
    #[error("no {title} under {}, and data.download is false", root.display())]
    Missing {
        /// The data set, as its authors write it.
        title: &'static str,
        /// `data.root`.
        root: PathBuf,
    },
    /// A folder of images is not there, and cannot be downloaded.
    #[error("{}: no such folder", folder.display())]
    NoFolder {
        /// Which one.
        folder: PathBuf,
    },
    /// `CIFAR10_DIR` names no folder with the files.
    #[error("{CIFAR10_DIR} is {}, {problem}; set it to the folder with the six .bin files or its parent, or unset it", folder.display())]
    EnvDir {
        /// Its value.
        folder: PathBuf,
        /// What is wrong there.
        problem: String,
    },
    /// A file or folder is missing or not what it should be.
    #[error("{}: {problem}", file.display())]
    BadFile {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A file or folder cannot be read.
    #[error("{}: cannot be read: {source}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file or folder cannot be written.
    #[error("{}: cannot be written: {source}", path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// Why not: a full disk, for one.
        source: io::Error,
    },
    /// It cannot be downloaded.
    #[error("{url}: {problem}")]
    Download {
        /// From where.
        url: String,
        /// Why not.
        problem: String,
    },
    /// What was downloaded, twice, is not what it should be.
    #[error("{url}: the MD5 of what it sends is {found} instead of {wanted}")]
    Md5 {
        /// From where.
        url: String,
        /// Of what came.
        found: String,
        /// Of the data set.
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
