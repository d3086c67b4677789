//! Private folders for the sockets over which processes of one user on one machine communicate.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// Longest path in bytes that a Unix socket can be bound to: `sun_path` without its final zero.
const MAX_SOCKET_PATH_BYTES: usize = 107;

/// Creates a folder whose name begins with `prefix` and that only this user may enter. Returns it, to be
/// removed when it is dropped, and the path for a socket named `socket` in it.
///
/// The folder is created in the one for temporary files, or in `/tmp` if that is impossible, or the socket's
/// path would be too long there or would contain whitespace, at which `mpirun` splits command lines.
///
/// # Errors
/// When the folder cannot be created.
pub fn private_folder(prefix: &str, socket: &str) -> io::Result<(TempDir, PathBuf)> {
    private_folder_in(&std::env::temp_dir(), prefix, socket)
}

fn private_folder_in(parent: &Path, prefix: &str, socket: &str) -> io::Result<(TempDir, PathBuf)> {
    let build = |parent: &Path| -> io::Result<(TempDir, PathBuf)> {
        let only_me = Permissions::from_mode(0o700);
        let folder =
            tempfile::Builder::new().prefix(prefix).permissions(only_me).tempdir_in(parent)?;
        let socket = folder.path().join(socket);
        Ok((folder, socket))
    };
    let fits = |socket: &Path| {
        let name = socket.as_os_str();
        let has_blanks = name.to_string_lossy().contains(char::is_whitespace);
        name.len() <= MAX_SOCKET_PATH_BYTES && !has_blanks
    };
    match build(parent) {
        Ok((folder, socket)) if fits(&socket) => Ok((folder, socket)),
        _ => build(Path::new("/tmp")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_can_be_bound_wherever_temporary_files_are() {
        let parent = tempfile::tempdir_in("/tmp").unwrap();
        let (deep, blank) = (parent.path().join("d".repeat(100)), parent.path().join("a b"));
        for folder in [&deep, &blank] {
            std::fs::create_dir(folder).unwrap();
        }
        let absent = parent.path().join("absent");
        for (folder, falls_back) in
            [(parent.path(), false), (&deep, true), (&blank, true), (&absent, true)]
        {
            let (made, socket) = private_folder_in(folder, "lockstep-", "hub").unwrap();
            assert_eq!(made.path().parent() != Some(folder), falls_back);
            assert_eq!(socket.parent(), Some(made.path()));
            assert_eq!(made.path().metadata().unwrap().permissions().mode() & 0o777, 0o700);
            std::os::unix::net::UnixListener::bind(&socket).unwrap();
        }
    }
}
