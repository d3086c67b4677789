//! Unpacks an archive into the folder of a data set, atomically.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use flate2::read::GzDecoder;
use tar::Archive;

use super::super::published::{Found, Published};
use super::{Problem, put_in_place};

/// Unpacks `archive` into the data set's folder below `root`.
///
/// Only regular files are unpacked, under the last component of their path, so that nothing is written
/// outside the folder.
pub(super) fn unpack(published: &Published, archive: &Path, root: &Path) -> Result<(), Problem> {
    let temporary = root.join(format!(".{}.tmp", published.folder));
    remove_if_there(&temporary)?; // left by a process that was killed
    fs::create_dir_all(&temporary).map_err(Problem::write(&temporary))?;
    let unpacked = unpack_files(archive, &temporary)
        .and_then(|()| match published.find(&temporary) {
            Found::Complete(_) => Ok(()),
            Found::Bad(Problem::BadFile { file, problem }) => {
                let name = file.file_name().unwrap_or_default().to_string_lossy();
                Err(Problem::bad(archive, format!("{name} in the archive is bad: {problem}")))
            }
            Found::Bad(other) => Err(other),
            Found::Absent => {
                let problem = format!("the archive has none of {}'s files", published.title);
                Err(Problem::bad(archive, problem))
            }
        })
        .and_then(|()| put_in_place(&temporary, &root.join(published.folder)));
    if unpacked.is_err() {
        let _ = fs::remove_dir_all(&temporary);
    }
    unpacked
}

fn unpack_files(archive: &Path, into: &Path) -> Result<(), Problem> {
    let wrong = |source: io::Error| Problem::bad(archive, format!("cannot be unpacked: {source}"));
    let compressed = File::open(archive).map_err(Problem::read(archive))?;
    let mut entries = Archive::new(GzDecoder::new(io::BufReader::new(compressed)));
    for entry in entries.entries().map_err(wrong)? {
        let mut entry = entry.map_err(wrong)?;
        let path = entry.path().map_err(wrong)?.into_owned();
        let Some(name) = path.file_name().filter(|_| entry.header().entry_type().is_file()) else {
            continue;
        };
        let path = into.join(name);
        let mut file = File::create(&path).map_err(Problem::write(&path))?;
        copy(&mut entry, &mut file).map_err(|failure| match failure {
            Failure::Read(source) => wrong(source),
            Failure::Write(source) => Problem::write(&path)(source),
        })?;
        file.sync_all().map_err(Problem::write(&path))?;
    }
    Ok(())
}

/// The side of a copy that failed, so that a bad archive is told from a full disk.
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

fn remove_if_there(folder: &Path) -> Result<(), Problem> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Problem::write(folder)(error)),
        _ => Ok(()),
    }
}
