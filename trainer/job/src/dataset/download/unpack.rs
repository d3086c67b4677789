//! Unpacking the archive, all or nothing.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;
use tar::Archive;

use super::super::cifar10::{self, FOLDER, Found};
use super::{DataError, write_error};
use crate::files;

/// Unpacks `archive` and says into which folder below `root`.
///
/// Only plain files are taken, by their last name, so nothing is written elsewhere.
pub(super) fn unpack(archive: &Path, root: &Path) -> Result<PathBuf, DataError> {
    let folder = root.join(FOLDER);
    let temporary = root.join(format!(".{FOLDER}.tmp"));
    remove_if_there(&temporary)?; // of a process that was killed
    fs::create_dir_all(&temporary).map_err(|source| write_error(&temporary, source))?;
    let unpacked = unpack_files(archive, &temporary)
        .and_then(|()| match cifar10::find(&temporary) {
            Found::Complete(_) => Ok(()),
            Found::Bad(DataError::BadFile { file, problem }) => {
                let name = file.file_name().unwrap_or_default().to_string_lossy();
                Err(bad(archive, format!("{name} in it is wrong: {problem}")))
            }
            Found::Bad(other) => Err(other),
            Found::Absent => Err(bad(archive, "it has none of CIFAR-10's files".to_string())),
        })
        .and_then(|()| {
            files::sync_folder(&temporary)
                .and_then(|()| fs::rename(&temporary, &folder))
                .and_then(|()| files::sync_folder(root))
                .map_err(|source| write_error(&folder, source))
        });
    if unpacked.is_err() {
        let _ = fs::remove_dir_all(&temporary);
    }
    unpacked.map(|()| folder)
}

fn unpack_files(archive: &Path, into: &Path) -> Result<(), DataError> {
    let wrong = |source: io::Error| bad(archive, format!("cannot be unpacked: {source}"));
    let compressed = File::open(archive)
        .map_err(|source| DataError::Read { file: archive.to_path_buf(), source })?;
    let mut entries = Archive::new(GzDecoder::new(io::BufReader::new(compressed)));
    for entry in entries.entries().map_err(wrong)? {
        let mut entry = entry.map_err(wrong)?;
        let path = entry.path().map_err(wrong)?.into_owned();
        let Some(name) = path.file_name().filter(|_| entry.header().entry_type().is_file()) else {
            continue;
        };
        let path = into.join(name);
        let mut file = File::create(&path).map_err(|source| write_error(&path, source))?;
        copy(&mut entry, &mut file).map_err(|failure| match failure {
            Failure::Read(source) => wrong(source),
            Failure::Write(source) => write_error(&path, source),
        })?;
        file.sync_all().map_err(|source| write_error(&path, source))?;
    }
    Ok(())
}

/// Which side of a copy failed: a bad archive is not a full disk.
enum Failure {
    Read(io::Error),
    Write(io::Error),
}

fn copy(from: &mut impl io::Read, to: &mut impl io::Write) -> Result<(), Failure> {
    let mut buffer = vec![0; 1 << 18];
    loop {
        match from.read(&mut buffer).map_err(Failure::Read)? {
            0 => return Ok(()),
            count => to.write_all(&buffer[..count]).map_err(Failure::Write)?,
        }
    }
}

fn remove_if_there(folder: &Path) -> Result<(), DataError> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(write_error(folder, error)),
        _ => Ok(()),
    }
}

fn bad(archive: &Path, problem: String) -> DataError {
    DataError::BadFile { file: archive.to_path_buf(), problem }
}
