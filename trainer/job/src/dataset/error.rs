//! Why there are no images.

use std::io;
use std::path::PathBuf;

use super::CIFAR10_DIR;
use crate::ExitCode;

/// What a user can do about missing data; the end of each message that needs it.
const WAYS: &str = "ways to get CIFAR-10: data.download: true fetches it; or put the six .bin files \
                    under data.root; or set CIFAR10_DIR to their folder";

/// Why a data set cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// It is not there and must not be downloaded.
    #[error("no CIFAR-10 under {}, and data.download is false; {WAYS}", root.display())]
    Missing {
        /// `data.root`.
        root: PathBuf,
    },
    /// `CIFAR10_DIR` names no folder with the files.
    #[error("{CIFAR10_DIR} is {}, {problem}; set it to the folder with the six .bin files or its parent, or unset it; {WAYS}", folder.display())]
    EnvDir {
        /// Its value.
        folder: PathBuf,
        /// What is wrong there.
        problem: String,
    },
    /// A file is missing or not what it should be.
    #[error("{}: {problem}; {WAYS}", file.display())]
    BadFile {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A file or folder cannot be read.
    #[error("{}: cannot be read: {source}; {WAYS}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file or folder cannot be written.
    #[error("{}: cannot be written: {source}; {WAYS}", path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// Why not: a full disk, for one.
        source: io::Error,
    },
    /// It cannot be downloaded.
    #[error("{url}: {problem}; {WAYS}")]
    Download {
        /// From where.
        url: String,
        /// Why not.
        problem: String,
    },
    /// What was downloaded, twice, is not what it should be.
    #[error("{url}: the MD5 of what it sends is {found} instead of {wanted}; {WAYS}")]
    Md5 {
        /// From where.
        url: String,
        /// Of what came.
        found: String,
        /// Of the data set.
        wanted: String,
    },
}

impl DataError {
    /// Always [`ExitCode::Data`].
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::Data
    }
}
