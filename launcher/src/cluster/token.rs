//! The secret that the launchers of one job share.
//!
//! It comes from the environment or from a file, never from a command line, which every user of a
//! machine can read. Where neither is given, node 0 makes a file in the home directory, which the other
//! nodes wait for: on a cluster they usually share it.

use std::ffi::OsString;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The variable that holds the token itself.
pub const TOKEN: &str = "LOCKSTEP_TOKEN";

/// A shorter one could be guessed.
const MIN_CHARACTERS: usize = 16;

/// The key of all that launchers of one job prove to each other.
#[derive(Clone)]
pub struct Token([u8; 32]);

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// It can be guessed.
    #[error("the token in {place} has fewer than {MIN_CHARACTERS} characters")]
    Short {
        /// Where it was found.
        place: String,
    },
    /// Others can read it.
    #[error("{} can be read by others than its owner; `chmod 600` it", path.display())]
    Public {
        /// The file.
        path: PathBuf,
    },
    /// Somebody else could replace it.
    #[error(
        "{} is not of the user whom the launcher runs as: another --token-file, or {TOKEN}, can hold the token",
        path.display()
    )]
    Foreign {
        /// The file or its folder.
        path: PathBuf,
    },
    /// There is no place for it.
    #[error(
        "HOME is not set, so there is no place for a token: set {TOKEN}, or name a --token-file"
    )]
    NoHome,
    /// The file cannot be read or written.
    #[error("cannot {what} the token file {}: {source}", path.display())]
    File {
        /// Read or write.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl Token {
    /// What `text`, found in `place`, stands for.
    fn new(text: &str, place: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        if text.chars().count() < MIN_CHARACTERS {
            return Err(TokenError::Short { place: place.to_owned() });
        }
        Ok(Self(blake3::derive_key("lockstep launcher token", text.as_bytes())))
    }

    /// Of the environment, if it is there.
    ///
    /// # Errors
    /// [`TokenError::Short`].
    pub fn from_env() -> Result<Option<Self>, TokenError> {
        std::env::var(TOKEN).ok().map(|text| Self::new(&text, TOKEN)).transpose()
    }

    /// In the file at `path`; `None` where there is no file yet.
    ///
    /// # Errors
    /// [`TokenError`] when it is another user's, or others can read it, or nobody.
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

    /// A new one, in a new file at `path` that only this user can read; it replaces one that is there.
    ///
    /// # Errors
    /// [`TokenError::File`].
    pub fn create(path: &Path) -> Result<Self, TokenError> {
        let failed = |source| TokenError::File { what: "write", path: path.to_owned(), source };
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(failed)?;
        }
        let mut secret = [0; 32];
        getrandom::fill(&mut secret).map_err(|error| failed(io::Error::other(error)))?;
        let text = blake3::Hash::from_bytes(secret).to_hex();
        let temporary = path.with_extension(format!("{}", std::process::id()));
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)
            .map_err(failed)?;
        file.write_all(text.as_bytes()).map_err(failed)?;
        fs::rename(&temporary, path).map_err(failed)?;
        Self::new(&text, &path.display().to_string())
    }

    /// The key.
    pub const fn key(&self) -> &[u8; 32] {
        &self.0
    }
}

/// A file that was made for a job, and is removed with it.
pub struct Made {
    /// Where it is.
    pub path: PathBuf,
    /// What is in it, unless another job of the same name has replaced it.
    pub token: Token,
}

impl Drop for Made {
    fn drop(&mut self) {
        let now = Token::read(&self.path);
        if now.is_ok_and(|now| now.is_some_and(|now| now.0 == self.token.0)) {
            // One that is gone is what is wanted.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// # Errors
/// [`TokenError::Foreign`] when the folder of `path` is there and another user's.
pub fn check_folder(path: &Path) -> Result<(), TokenError> {
    let Some(folder) = path.parent() else { return Ok(()) };
    match fs::metadata(folder) {
        Ok(metadata) if !is_own(&metadata) => Err(TokenError::Foreign { path: folder.to_owned() }),
        // One that cannot be looked at is told of with the file.
        _ => Ok(()),
    }
}

fn is_own(metadata: &Metadata) -> bool {
    metadata.uid() == rustix::process::geteuid().as_raw()
}

/// Where the launchers of a job look for its token unless they are told: `.lockstep` in `home`, a file named
/// for what all of them know of the job.
///
/// # Errors
/// [`TokenError::NoHome`] without one.
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
        let make = || Made { path: path.clone(), token: Token::create(&path).unwrap() };
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
