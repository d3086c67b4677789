//! The secret that the launchers of one job share.
//!
//! It comes from the environment or from a file, never from a command line, which every user of a
//! machine can read. Where neither is given, node 0 makes a file in the home directory, which the other
//! nodes wait for: on a cluster they usually share it.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
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
    /// [`TokenError`] when others can read the file, or nobody.
    pub fn read(path: &Path) -> Result<Option<Self>, TokenError> {
        let failed = |source| TokenError::File { what: "read", path: path.to_owned(), source };
        let text = match fs::read_to_string(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(failed)?,
        };
        if fs::metadata(path).map_err(failed)?.mode() & 0o077 != 0 {
            return Err(TokenError::Public { path: path.to_owned() });
        }
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

/// Where the launchers of a job look for its token unless they are told: `~/.lockstep/`, a file named
/// for what all of them know of the job.
pub fn default_path(job: &str) -> PathBuf {
    let home = std::env::var_os("HOME").map_or_else(std::env::temp_dir, PathBuf::from);
    let plain = |c: char| if c.is_ascii_alphanumeric() || "-.".contains(c) { c } else { '-' };
    home.join(".lockstep").join(format!("token-{}", job.chars().map(plain).collect::<String>()))
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
}
