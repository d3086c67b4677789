//! The manifest of a checkpoint: sizes and hashes of its files.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{CheckpointError, EMA, MANIFEST, MODEL, OPTIMIZER, Result, STATE, io_error};

/// Version of the checkpoint layout that this crate writes and reads.
const VERSION: u32 = 1;

/// The manifest of a checkpoint.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    version: u32,
    /// Version of the crate that wrote the checkpoint.
    lockstep: String,
    files: BTreeMap<String, Entry>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    bytes: u64,
    blake3: String,
}

impl Manifest {
    /// Builds the manifest of the files in `folder`.
    pub fn of(folder: &Path) -> Result<Self> {
        let names = [MODEL, EMA, OPTIMIZER, STATE].into_iter();
        let files = names
            .filter(|name| *name != EMA || folder.join(name).exists())
            .map(|name| Ok((name.to_owned(), Entry::of(&folder.join(name))?)))
            .collect::<Result<_>>()?;
        Ok(Self { version: VERSION, lockstep: env!("CARGO_PKG_VERSION").to_owned(), files })
    }

    /// Reads the manifest in `folder` and checks the size and hash of every file in it.
    pub fn verify(folder: &Path) -> Result<()> {
        let damaged = |reason| CheckpointError::Damaged { path: folder.to_owned(), reason };
        let path = folder.join(MANIFEST);
        let text = std::fs::read(&path).map_err(io_error("read", &path))?;
        let manifest: Self = serde_json::from_slice(&text)
            .map_err(|error| damaged(format!("{MANIFEST}: {error}")))?;
        if manifest.version != VERSION {
            return Err(damaged(format!(
                "its format has version {}, but this program reads version {VERSION}",
                manifest.version
            )));
        }
        let missing =
            [MODEL, OPTIMIZER, STATE].iter().find(|name| !manifest.files.contains_key(**name));
        if let Some(name) = missing {
            return Err(damaged(format!("{MANIFEST} does not list {name}")));
        }
        for (name, expected) in &manifest.files {
            let found = Entry::of(&folder.join(name))?;
            if found != *expected {
                return Err(damaged(format!(
                    "{name} has {} bytes with hash {:.8} instead of {} bytes with hash {:.8}",
                    found.bytes, found.blake3, expected.bytes, expected.blake3
                )));
            }
        }
        Ok(())
    }
}

impl Entry {
    fn of(path: &Path) -> Result<Self> {
        let mut hasher = blake3::Hasher::new();
        let file = File::open(path).map_err(io_error("read", path))?;
        hasher.update_reader(file).map_err(io_error("read", path))?;
        Ok(Self { bytes: hasher.count(), blake3: hasher.finalize().to_hex().to_string() })
    }
}
