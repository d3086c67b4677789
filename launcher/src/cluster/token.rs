//! The secret that the launchers of one job share.
//!
//! It comes from the environment or from a file, never from a command line, which every user of a machine can
//! read. Where neither is given, node 0 makes a file in the home directory. The other nodes wait for it: the
//! nodes of a cluster usually share the home directory.

use std::ffi::OsString;
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

/// Environment variable that holds the token itself.
pub const TOKEN: &str = "LOCKSTEP_TOKEN";

/// Minimum length of a token in characters: a shorter one could be guessed.
const MIN_CHARACTERS: usize = 16;

/// The key by which the launchers of one job authenticate each other, derived from the token's text.
#[derive(Clone)]
pub struct Token([u8; 32]);

/// Why a token cannot be used or made.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The token is so short that it could be guessed.
    #[error("the token in {place} has fewer than {MIN_CHARACTERS} characters")]
    Short {
        /// Where it was found.
        place: String,
    },
    /// Users other than its owner have access to the file.
    #[error("the token file {} is accessible to other users; `chmod 600` it", path.display())]
    Public {
        /// The file.
        path: PathBuf,
    },
    /// The file or its folder belongs to another user, who could replace the token.
    #[error(
        "{} belongs to another user; keep the token in another --token-file or in {TOKEN}",
        path.display()
    )]
    Foreign {
        /// The file or its folder.
        path: PathBuf,
    },
    /// There is no home directory for the file.
    #[error(
        "HOME is not set, so there is no folder for the token: set {TOKEN}, or give a --token-file"
    )]
    NoHome,
    /// The file cannot be read or written.
    #[error("cannot {what} the token file {}: {source}", path.display())]
    File {
        /// `read` or `write`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
}

impl Token {
    /// Derives the key from `text`, which was found in `place`.
    fn new(text: &str, place: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        if text.chars().count() < MIN_CHARACTERS {
            return Err(TokenError::Short { place: place.to_owned() });
        }
        Ok(Self(blake3::derive_key("lockstep launcher token", text.as_bytes())))
    }

    /// Reads the token from the environment; `None` if [`TOKEN`] is not set.
    ///
    /// # Errors
    /// [`TokenError::Short`].
    pub fn from_env() -> Result<Option<Self>, TokenError> {
        std::env::var(TOKEN).ok().map(|text| Self::new(&text, TOKEN)).transpose()
    }

    /// Reads the token from the file at `path`; `None` if there is no file yet.
    ///
    /// # Errors
    /// [`TokenError`] when the file belongs to another user, others have access to it, it cannot be read, or
    /// its token is too short.
    pub fn read(path: &Path) -> Result<Option<Self>, TokenError> {
        let failed = |source| TokenError::File { what: "read", path: path.to_owned(), source };
        let mut file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(failed)?,
        };
        let metadata = file.metadata().map_err(failed)?;
        if !is_own(&metadata) {
            return Err(TokenError::Foreign { path: path.to_owned() });
        }
        if metadata.mode() & 0o077 != 0 {
            return Err(TokenError::Public { path: path.to_owned() });
        }
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(failed)?;
        Self::new(&text, &path.display().to_string()).map(Some)
    }

    /// Makes a random token and writes it to a new file at `path` that only this user can read. A file that
    /// is already there is replaced.
    ///
    /// # Errors
    /// [`TokenError::File`].
    pub fn create(path: &Path) -> Result<Self, TokenError> {
        let failed = |source| TokenError::File { what: "write", path: path.to_owned(), source };
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new("."));
        fs::create_dir_all(folder).map_err(failed)?;
        let mut secret = [0; 32];
        getrandom::fill(&mut secret).map_err(|error| failed(io::Error::other(error)))?;
        let text = blake3::Hash::from_bytes(secret).to_hex();
        // Always a new file: one that another user has put there would remain readable to that user.
        let mut file = NamedTempFile::new_in(folder).map_err(failed)?;
        file.write_all(text.as_bytes()).map_err(failed)?;
        file.persist(path).map_err(|error| failed(error.error))?;
        Self::new(&text, &path.display().to_string())
    }

    /// Returns the key.
    pub const fn key(&self) -> &[u8; 32] {
        &self.0
    }
}

/// A token's file that was made for a job. Dropping this removes the file, unless another job of the same
/// name has replaced it.
pub struct TemporaryTokenFile {
    /// Path of the file.
    pub path: PathBuf,
    /// The token that was written to the file.
    pub token: Token,
}

impl Drop for TemporaryTokenFile {
    fn drop(&mut self) {
        let now = Token::read(&self.path);
        if now.is_ok_and(|now| now.is_some_and(|now| now.0 == self.token.0)) {
            // Fails if the file is gone, which is fine.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Checks that the folder of `path`, if it exists, belongs to this user.
///
/// # Errors
/// [`TokenError::Foreign`] when it belongs to another user.
pub fn check_folder(path: &Path) -> Result<(), TokenError> {
    let Some(folder) = path.parent() else { return Ok(()) };
    match fs::metadata(folder) {
        Ok(metadata) if !is_own(&metadata) => Err(TokenError::Foreign { path: folder.to_owned() }),
        // A folder that cannot be examined is reported with the file.
        _ => Ok(()),
    }
}

fn is_own(metadata: &Metadata) -> bool {
    metadata.uid() == rustix::process::geteuid().as_raw()
}

/// Returns the path of the file where the launchers of a job look for its token if the user names none: in
/// `.lockstep` in `home`, and named for `job`, which all of them know.
///
/// # Errors
/// [`TokenError::NoHome`] if `home` is missing or empty.
pub fn default_path(home: Option<OsString>, job: &str) -> Result<PathBuf, TokenError> {
    let home = home.filter(|home| !home.is_empty()).ok_or(TokenError::NoHome)?;
    let plain = |c: char| if c.is_ascii_alphanumeric() || "-.".contains(c) { c } else { '-' };
    let name = format!("token-{}", job.chars().map(plain).collect::<String>());
    Ok(PathBuf::from(home).join(".lockstep").join(name))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_is_made_is_read_and_only_by_its_owner() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/token");
        assert!(Token::read(&path).unwrap().is_none());
        let made = Token::create(&path).unwrap();
        assert_eq!(Token::read(&path).unwrap().unwrap().key(), made.key());
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_ne!(Token::create(&path).unwrap().key(), made.key(), "one a job");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(Token::read(&path), Err(TokenError::Public { .. })));
        fs::write(&path, "guess me").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(matches!(Token::read(&path), Err(TokenError::Short { .. })));
    }

    #[test]
    fn a_job_removes_its_own_file_and_not_the_one_that_replaced_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let make =
            || TemporaryTokenFile { path: path.clone(), token: Token::create(&path).unwrap() };
        let (first, second) = (make(), make());
        drop(first);
        assert!(path.exists());
        drop(second);
        assert!(!path.exists());
    }

    #[test]
    fn a_file_or_folder_of_another_user_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        Token::create(&path).unwrap();
        check_folder(&path).unwrap();
        if !rustix::process::geteuid().is_root() {
            println!("skipped: needs root");
            return;
        }
        std::os::unix::fs::chown(&path, Some(65_534), None).unwrap();
        assert!(matches!(Token::read(&path), Err(TokenError::Foreign { .. })));
        std::os::unix::fs::chown(folder.path(), Some(65_534), None).unwrap();
        assert!(matches!(check_folder(&path), Err(TokenError::Foreign { .. })));
    }

    #[test]
    fn without_a_home_another_place_is_asked_for() {
        let path = default_path(Some("/home/a".into()), "m0:29400").unwrap();
        assert_eq!(path, Path::new("/home/a/.lockstep/token-m0-29400"));
        for none in [None, Some("".into())] {
            let error = default_path(none, "m0:29400").unwrap_err().to_string();
            assert!(error.contains("set LOCKSTEP_TOKEN"), "{error}");
        }
    }
}
