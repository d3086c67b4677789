//! The lock of a run directory.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

use super::RunDirError;
use crate::host;

/// Locks `root/.lock`. The kernel releases the lock when this process and its child processes, which inherit
/// the file descriptor, have ended, however they end: while a rank runs on after its launcher was killed, no
/// other process may write to the directory.
///
/// # Errors
/// [`RunDirError::InUse`] when another process holds the lock, else [`RunDirError::Write`].
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
    let holder = format!("process {} on {}\n", std::process::id(), host::name());
    let noted = file
        .set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| file.write_all(holder.as_bytes()));
    noted.map_err(wrong)?;
    rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::empty())
        .map_err(|source| wrong(source.into()))?;
    Ok(file)
}
